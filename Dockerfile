# The environment of Makefile and CI as an image. docs/artifact.md says how to build and run it, with Apptainer too.
# PyTorch's wheels bring CUDA's libraries; the host needs NVIDIA's driver and container toolkit, or no GPU at all.
FROM python:3.12-bookworm

# Records name the commit that they were measured with; the image holds no .git.
ARG COMMIT=unknown
ENV BLOCKSHOCK_GIT_COMMIT=$COMMIT

# The base image brings make, and the C compiler that Triton and inductor call.
WORKDIR /block-shock
COPY . .
RUN make .venv/.installed
ENV PATH=/block-shock/.venv/bin:$PATH

CMD ["make", "artifact"]
