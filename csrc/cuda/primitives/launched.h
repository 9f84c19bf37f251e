// What the launch of a kernel came to: what every entry point of ops/ returns.
#pragma once

namespace mvit::cuda {

struct Launched {
    int error;           // a cudaError_t, 0: launched, or nothing to do
    const char* kernel;  // which one
};

const char* error_name(int error);
const char* error_text(int error);

}  // namespace mvit::cuda
