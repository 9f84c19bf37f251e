// Rows that are windows of a padded map, where each pixel of a result looks: what is dense in each is a piece of a line of the map.
#pragma once

#include <cstdint>

namespace mvit {

struct Windows {
    int64_t line = 0, line_step = 0;  // pixels of a line of the result, and bytes from the first of one to that of the next; 0: no windows
    int64_t run = 0, run_step = 0;    // bytes of a piece, and from one to the next
};

}  // namespace mvit
