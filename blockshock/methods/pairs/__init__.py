"""The pair of layers of an MLP over the ranks, Y = φ(X W_upᵀ) W_downᵀ, built of a method's layers.

One file a pairing: `layers` (both layers as they are), `column_row` (Megatron's: one all-reduce), `reduce_scatter`
(complementary halves: every rank's hidden columns are summed on it). `choice` says which one a job gets.
"""
