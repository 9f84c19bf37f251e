// What the launch of a kernel came to: what every entry point of ops/ returns.
#pragma once

namespace mvit::cuda {

struct Launched {
    int error;           // a cudaError_t, 0: launched, or nothing to do
    const char* kernel;  // which one
};

// Bytes of shared memory that a block may ask for; 0 where there is no such device.
int shared_of_block(int device);

// How many blocks of so many bytes of shared memory a multiprocessor has at once, if there are registers for `most`; 0 where not even one.
int blocks_at_once(int bytes, int most, int device);

const char* error_name(int error);
const char* error_text(int error);

}  // namespace mvit::cuda
