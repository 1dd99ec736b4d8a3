// What measurements run on the device: a digest that the host can compute too, and a matrix product that keeps the device busy.
//
// Compiled without headers to kernels.ptx beside it.

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned char u8;

// The finaliser of splitmix64: every bit of the word moves half of the bits of the answer.
static __device__ u64 mixed(u64 word)
{
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

// Adds to *sum, modulo 2^64, the mixed words of `bytes` bytes at `from`, each with its position. The last word is filled up with
// zeros. Any alignment, any grid.
extern "C" __global__ void farfeed_digest(const u8 *from, u64 bytes, u64 *sum)
{
    const u64 stride = (u64)gridDim.x * blockDim.x;
    const u64 words = bytes / 8;
    const u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const bool aligned = ((u64)from & 7) == 0;
    u64 mine = 0;
    for (u64 at = first; at < words; at += stride) {
        u64 word = 0;
        if (aligned) {
            word = ((const u64 *)from)[at];
        } else {
            for (int byte = 7; byte >= 0; byte--)
                word = word << 8 | from[8 * at + byte];
        }
        mine += mixed(word + (at + 1) * 0x9e3779b97f4a7c15ull);
    }
    if (first == 0 && (bytes & 7)) {
        u64 word = 0;
        for (u64 at = bytes; at > 8 * words; at--)
            word = word << 8 | from[at - 1];
        mine += mixed(word + (words + 1) * 0x9e3779b97f4a7c15ull);
    }
    for (int lane = 16; lane > 0; lane /= 2)
        mine += __shfl_down_sync(0xffffffffu, mine, lane);
    if ((threadIdx.x & 31) == 0)
        atomicAdd(sum, mine);
}

// c = a * b for square row-major matrices of n * n floats; n a multiple of 128, a block of 256 threads for each 128 * 128 of c.
// A thread has 8 * 8 sums in registers: 64 multiplications for 16 reads of shared memory, so that arithmetic is the limit.
extern "C" __global__ void __launch_bounds__(256) farfeed_product(const float *a, const float *b, float *c, u32 n)
{
    __shared__ float left[8][132]; // four more than needed, so that the stores below meet in no bank
    __shared__ float right[8][128];
    const u32 thread = threadIdx.x;
    const u32 row = blockIdx.y * 128, column = blockIdx.x * 128;
    const u32 x = thread % 16, y = thread / 16;
    float sums[8][8] = {};
    for (u32 step = 0; step < n; step += 8) {
        for (u32 part = 0; part < 4; part++) {
            const u32 at = part * 256 + thread;
            left[at % 8][at / 8] = a[(u64)(row + at / 8) * n + step + at % 8];
            right[at / 128][at % 128] = b[(u64)(step + at / 128) * n + column + at % 128];
        }
        __syncthreads();
#pragma unroll 1
        for (u32 k = 0; k < 8; k++) {
            float down[8], across[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                down[i] = left[k][y + 16 * i];
                across[i] = right[k][x + 16 * i];
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++)
#pragma unroll
                for (u32 j = 0; j < 8; j++)
                    sums[i][j] = fmaf(down[i], across[j], sums[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++)
#pragma unroll
        for (u32 j = 0; j < 8; j++)
            c[(u64)(row + y + 16 * i) * n + column + x + 16 * j] = sums[i][j];
}
