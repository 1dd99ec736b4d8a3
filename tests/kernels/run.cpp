// Runs the finishing kernels' own text on the processor, thread by thread, for tests on machines without a GPU.
//
//   run KERNEL BLOCKS THREADS FROM_BYTES FROM_OFFSET TO_BYTES TO_OFFSET TABLE_BYTES NUMBER...
//
// Standard input has the bytes that are read, what lies where is written to, and the table; standard output gets what is
// written. Regions begin OFFSET bytes behind a multiple of 16. NUMBERs are the rest of the kernel's arguments. The regions are
// exactly as long as they say: built with -fsanitize=address,undefined, a step beside them or a misaligned access ends it.

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static

struct Index {
    unsigned x;
};
static Index gridDim, blockDim, blockIdx, threadIdx;

// A barrier for threads that run one after the other: the first time round each stops there; the second time round all
// that lies before it has been done by every one of them, and is done again. Where a barrier is missing there is no second time, and
// the first threads have seen what others had not done yet.
static bool stops_at_barrier, met_barrier;
static std::jmp_buf barrier;
static void __syncthreads() {
    if (stops_at_barrier) std::longjmp(barrier, 1);
}

#include "../../src/device/finish/kernels.cu"

template <typename Kernel> static void launch(Kernel kernel) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
        stops_at_barrier = true;
        met_barrier = false;
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) {
            if (setjmp(barrier) == 0) {
                kernel();
            } else {
                met_barrier = true;
            }
        }
        stops_at_barrier = false;
        for (threadIdx.x = 0; met_barrier && threadIdx.x < blockDim.x; threadIdx.x++) kernel();
    }
}

struct Region {
    size_t bytes;
    char *whole, *start;

    Region(const char *bytes, const char *offset) : bytes(std::strtoull(bytes, nullptr, 10)) {
        const size_t skip = std::strtoull(offset, nullptr, 10);
        // malloc's memory begins at a multiple of 16.
        whole = static_cast<char *>(std::malloc(skip + this->bytes));
        start = whole + skip;
        if (std::fread(start, 1, this->bytes, stdin) != this->bytes) std::exit(3);
    }
    ~Region() { std::free(whole); }

    template <typename T> T *as() const { return reinterpret_cast<T *>(start); }
};

int main(int count, char **arguments) {
    if (count < 9) return 2;
    const std::string name = arguments[1];
    gridDim.x = std::atoi(arguments[2]);
    blockDim.x = std::atoi(arguments[3]);
    const Region from(arguments[4], arguments[5]), to(arguments[6], arguments[7]), table(arguments[8], "0");
    u64 numbers[3] = {};
    for (int i = 9; i < count && i < 12; i++) numbers[i - 9] = std::strtoull(arguments[i], nullptr, 10);
    const u32 a = numbers[0], b = numbers[1], c = numbers[2];

#define RUN(KERNEL, ...)                                                                                               \
    if (name == #KERNEL) {                                                                                             \
        launch([&] { KERNEL(__VA_ARGS__); });                                                                          \
        return std::fwrite(to.start, 1, to.bytes, stdout) == to.bytes ? 0 : 3;                                         \
    }
    RUN(farfeed_widen_u8_i32, from.as<u8>(), to.as<i32>(), numbers[0])
    RUN(farfeed_widen_u8_i64, from.as<u8>(), to.as<i64>(), numbers[0])
    RUN(farfeed_widen_u16_i32, from.as<u16>(), to.as<i32>(), numbers[0])
    RUN(farfeed_widen_u16_i64, from.as<u16>(), to.as<i64>(), numbers[0])
    RUN(farfeed_widen_u32_i64, from.as<u32>(), to.as<i64>(), numbers[0])
    RUN(farfeed_widen_i32_i64, from.as<i32>(), to.as<i64>(), numbers[0])
    RUN(farfeed_planes_1, from.as<u8>(), to.as<u8>(), a, b, c)
    RUN(farfeed_planes_2, from.as<u16>(), to.as<u16>(), a, b, c)
    RUN(farfeed_planes_4, from.as<u32>(), to.as<u32>(), a, b, c)
    RUN(farfeed_planes_8, from.as<u64>(), to.as<u64>(), a, b, c)
    RUN(farfeed_look_up_2, from.as<u8>(), to.as<u16>(), table.as<u16>(), a, b, c)
    RUN(farfeed_look_up_4, from.as<u8>(), to.as<u32>(), table.as<u32>(), a, b, c)
    RUN(farfeed_look_up_planes_2, from.as<u8>(), to.as<u16>(), table.as<u16>(), a, b, c)
    RUN(farfeed_look_up_planes_4, from.as<u8>(), to.as<u32>(), table.as<u32>(), a, b, c)
    std::fprintf(stderr, "no kernel %s\n", name.c_str());
    return 2;
}
