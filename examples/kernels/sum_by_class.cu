// Adds up the bytes of each row of a ragged column in the sum of the row's class. A block takes a row at a time. Needs no headers.

extern "C" __global__ void sum_by_class(const unsigned char *values, const long long *offsets, const long long *classes,
                                        unsigned int rows, unsigned long long *sums) {
    for (unsigned int row = blockIdx.x; row < rows; row += gridDim.x) {
        unsigned long long sum = 0;
        for (long long at = offsets[row] + threadIdx.x; at < offsets[row + 1]; at += blockDim.x) {
            sum += values[at];
        }
        // Whole numbers: the answer does not depend on who adds first.
        atomicAdd(&sums[classes[row]], sum);
    }
}
