// The epilogue of the integer ops from what Python gives of it, on any device.
#pragma once

#include "bind.h"
#include "cpu/core/qepilogue_types.h"

namespace mvit {

inline const int32_t* ints(uintptr_t address) { return static_cast<const int32_t*>(pointer(address)); }
inline const uint8_t* bytes(uintptr_t address) { return static_cast<const uint8_t*>(pointer(address)); }

// channels: the rows of QChannels, `stride` values apart.
inline QChannels channels_at(uintptr_t address, int64_t stride) {
    const int32_t* row = ints(address);
    const auto as_floats = [&](int i) { return reinterpret_cast<const float*>(row + i * stride); };
    return {row, as_floats(1), as_floats(2), as_floats(3), as_floats(4), as_floats(5), row + 6 * stride};
}

inline QEpilogue epilogue(uintptr_t channels, int64_t channels_stride, int type, bool plain, int activation, uintptr_t segments,
                          uintptr_t table, uintptr_t curve, uintptr_t residual, int residual_type, int64_t residual_stride,
                          float residual_scale, int32_t residual_zero_point, uintptr_t y, int64_t y_stride) {
    QEpilogue e{};
    e.channels = channels_at(channels, channels_stride);
    e.type = static_cast<QType>(type), e.plain = plain;
    e.activation = static_cast<QActivation>(activation), e.segments = floats(segments), e.table = bytes(table);
    e.curve = static_cast<const int16_t*>(pointer(curve));
    e.residual = pointer(residual), e.residual_type = static_cast<QType>(residual_type), e.residual_stride = residual_stride;
    e.residual_scale = residual_scale, e.residual_zero_point = residual_zero_point;
    e.y = pointer(y), e.y_stride = y_stride;
    return e;
}

}  // namespace mvit
