// y (B, R) = x (B, K) · Wᵀ with W (R, K) 2:4, for few rows of x: W's kept values and two-bit places go to the sparse
// tensor cores as they lie in memory, so the time is that of reading them once.
//
// A CTA takes ROWS rows of W and BATCH rows of x, and `gridDim.z` = SPLIT CTAs share K. A step is 128 columns of W: 128
// bytes of kept values a row. All operands come through a ring of STAGES steps in shared memory (cp.async), so that the
// bytes in flight don't depend on registers; ldmatrix then deals them out as mma.sp.m16n8k32 wants them:
//   A = kept values (16 rows x 16), B = 8 rows of x (32 columns each), metadata as sparse_mma.arrange() laid it out.
// Chunks of 16 bytes are XOR-swizzled by their row, so that the eight rows of an 8x8 matrix lie in different banks.
// Sums: the ALONG warps that share a step, then the SPLIT CTAs, each in a fixed order: the result is the same to the bit.
//
// Compiled by NVRTC without any header. Given by -D: ROWS BATCH WARPS ALONG SPLIT STAGES CLUSTER BF16 PREFETCH.

typedef unsigned int u32;

constexpr int THREADS = 32 * WARPS;
constexpr int HEIGHT = ROWS * ALONG / (16 * WARPS);  // tiles of 16 rows a warp
constexpr int STRIPS = BATCH / 8;
constexpr int MMAS = 4 / ALONG;  // of the four of a step, a warp's
constexpr int VALUES = 128 * ROWS, METADATA = 16 * ROWS, STAGE = VALUES + METADATA + 256 * BATCH;  // bytes of a step
constexpr int PITCH = ROWS + 4;  // floats from one row of y to the next in shared memory: no two lanes meet in a bank

static_assert(HEIGHT >= 1 && 16 * HEIGHT * WARPS == ROWS * ALONG, "warps must share the rows evenly");
static_assert(WARPS >= 2 && WARPS % ALONG == 0 && 4 % ALONG == 0 && BATCH % 8 == 0, "tiles");

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

#define STRING_(x) #x
#define STRING(x) STRING_(x)

__device__ __forceinline__ void copy_weight(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::" STRING(PREFETCH) "B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_or_zero(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void ldmatrix(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(from) : "memory");
}

template <int SELECTOR>
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 places) {
#if BF16
#define TYPES "f32.bf16.bf16.f32"
#else
#define TYPES "f32.f16.f16.f32"
#endif
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col." TYPES
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places),
                   "n"(SELECTOR));
}

__device__ __forceinline__ u32 pair(float low, float high) {
    u32 r;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
    return r;
}

__device__ __forceinline__ void add(float4& s, const float4& t) { s.x += t.x, s.y += t.y, s.z += t.z, s.w += t.w; }

__device__ __forceinline__ float4 load_past_l1(const float* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}

#if CLUSTER
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ float4 load_peer(const float* p, int peer) {
    u32 there;
    float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(peer));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
    return v;
}
#endif

extern "C" __global__ void
#if CLUSTER
__cluster_dims__(1, 1, SPLIT)
#endif
__launch_bounds__(THREADS)
product(const char* __restrict__ x, const char* __restrict__ values, const char* __restrict__ metadata,
        unsigned short* __restrict__ y, float* __restrict__ partial, int* __restrict__ arrived, int B, int R, int K) {
    extern __shared__ __align__(128) char shared[];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int strip = warp / ALONG, along = warp % ALONG;  // which rows of the CTA's, which MMAs of a step
    const int row0 = blockIdx.x * ROWS, b0 = blockIdx.y * BATCH;
    const int steps = K / 128;
    const int start = (int)((long long)blockIdx.z * steps / SPLIT), stop = (int)((blockIdx.z + 1ll) * steps / SPLIT);
    const u32 ring = shared_address(shared);

    const char* my_values = values + (size_t)(row0 + thread / 8) * K + thread % 8 * 16;
    const u32 values_to = thread / 8 * 128 + ((thread % 8) ^ (thread / 8 % 8)) * 16;
    auto fetch = [&](int step, u32 stage) {
#pragma unroll
        for (int j = 0; j < ROWS * 8 / THREADS; j++)
            copy_weight(stage + values_to + j * THREADS * 16, my_values + (size_t)j * (THREADS / 8) * K + (size_t)step * 128);
#pragma unroll
        for (int i = thread; i < ROWS; i += THREADS)
            copy_weight(stage + VALUES + i * 16, metadata + ((size_t)(row0 / 16 + i / 16) * steps + step) * 256 + i % 16 * 16);
#pragma unroll
        for (int i = thread; i < BATCH * 16; i += THREADS) {
            const int b = i / 16, chunk = i % 16;
            const bool there = b0 + b < B;
            copy_or_zero(stage + VALUES + METADATA + b * 256 + (chunk ^ (b % 8)) * 16,
                         x + (size_t)(there ? b0 + b : 0) * K * 2 + (size_t)step * 256 + chunk * 16, there);
        }
    };

    float sums[HEIGHT][STRIPS][4] = {};
    const u32 a_row = (strip * 16 * HEIGHT + lane % 16) * 128;
    const u32 b_row = VALUES + METADATA + lane % 8 * 256;
    const int swizzle = lane % 8;  // of both rows: tiles and strips are multiples of eight rows

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (start + s < stop) fetch(start + s, ring + s * STAGE);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    int slot = 0, next = STAGES - 1;
    for (int step = start; step < stop; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();  // this step has come, for all; and all have left the slot that is filled next
        if (step + STAGES - 1 < stop) fetch(step + STAGES - 1, ring + next * STAGE);
        asm volatile("cp.async.commit_group;" ::: "memory");
        const u32 stage = ring + slot * STAGE;

        uint2 places[HEIGHT];
#pragma unroll
        for (int h = 0; h < HEIGHT; h++)
            places[h] = *(const uint2*)(shared + slot * STAGE + VALUES + (strip * HEIGHT + h) * 256 + lane * 8);
#pragma unroll
        for (int i = 0; i < MMAS; i++) {
            const int m = along * MMAS + i;
            u32 a[HEIGHT][4];
#pragma unroll
            for (int h = 0; h < HEIGHT; h++)
                ldmatrix(a[h], stage + a_row + h * 16 * 128 + ((2 * m + lane / 16) ^ swizzle) * 16);
#pragma unroll
            for (int n = 0; n < STRIPS; n++) {
                u32 b[4];
                ldmatrix(b, stage + b_row + n * 8 * 256 + ((4 * m + lane / 8) ^ swizzle) * 16);
#pragma unroll
                for (int h = 0; h < HEIGHT; h++) {
                    // The four lanes of a row hold both MMAs' metadata: 0 and 1 that of the even one, 2 and 3 of the odd.
                    const u32 word = m / 2 ? places[h].y : places[h].x;
                    if (MMAS == 1) {
                        if (m % 2) mma<1>(sums[h][n], a[h], b, word);
                        else mma<0>(sums[h][n], a[h], b, word);
                    } else if (i % 2) mma<1>(sums[h][n], a[h], b, word);
                    else mma<0>(sums[h][n], a[h], b, word);
                }
            }
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }

    // Sums to shared memory as y lies, (ALONG, BATCH, PITCH), so that they leave in long rows.
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    float* tile = (float*)shared;
#pragma unroll
    for (int h = 0; h < HEIGHT; h++)
#pragma unroll
        for (int n = 0; n < STRIPS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = (strip * HEIGHT + h) * 16 + lane / 4 + i / 2 * 8, b = n * 8 + lane % 4 * 2 + i % 2;
                tile[(along * BATCH + b) * PITCH + r] = sums[h][n][i];
            }
    __syncthreads();
    constexpr int FOURS = ROWS / 4, ALL = BATCH * FOURS;
    if (ALONG > 1) {
        for (int i = thread; i < ALL; i += THREADS) {
            float4* at = (float4*)(tile + i / FOURS * PITCH + i % FOURS * 4);
            float4 s = *at;
#pragma unroll
            for (int k = 1; k < ALONG; k++) add(s, at[k * BATCH * PITCH / 4]);
            *at = s;
        }
        if (!CLUSTER) __syncthreads();
    }

    int first = thread, stride = THREADS;
#if CLUSTER
    cluster_barrier();
    first += blockIdx.z * THREADS;
    stride *= SPLIT;
#elif SPLIT > 1
    __shared__ bool last;
    const int index = blockIdx.x * gridDim.y + blockIdx.y;
    float* mine = partial + (size_t)index * SPLIT * BATCH * ROWS;
    for (int i = thread; i < ALL; i += THREADS)
        ((float4*)(mine + (size_t)blockIdx.z * BATCH * ROWS))[i] = *(const float4*)(tile + i / FOURS * PITCH + i % FOURS * 4);
    __threadfence();
    __syncthreads();
    if (thread == 0) last = atomicAdd(arrived + index, 1) == SPLIT - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (thread == 0) arrived[index] = 0;  // as it was found, for the next launch
#endif
    for (int i = first; i < ALL; i += stride) {
        const int b = i / FOURS, r = i % FOURS * 4;
        float4 s;
#if CLUSTER
        s = load_peer(tile + b * PITCH + r, 0);
#pragma unroll
        for (int p = 1; p < SPLIT; p++) add(s, load_peer(tile + b * PITCH + r, p));
#elif SPLIT > 1
        s = load_past_l1(mine + 4 * i);
#pragma unroll
        for (int p = 1; p < SPLIT; p++) add(s, load_past_l1(mine + p * BATCH * ROWS + 4 * i));
#else
        s = *(const float4*)(tile + b * PITCH + r);
#endif
        if (b0 + b < B) *(uint2*)(y + (size_t)(b0 + b) * R + row0 + r) = make_uint2(pair(s.x, s.y), pair(s.z, s.w));
    }
#if CLUSTER
    cluster_barrier();  // peers may still be reading from here
#endif
}
