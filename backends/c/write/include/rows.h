/* Line buffers: the rows of a value that are still needed, oldest first. */
#ifndef FXP_ROWS_H
#define FXP_ROWS_H

#include <stddef.h>

/* Moves `bytes` bytes that begin `gone` bytes after `rows` to its start, in pieces that do not overlap. */
static __attribute__((noinline, unused)) void fxp_to_front(void *rows, size_t gone, size_t bytes)
{
    unsigned char *to = (unsigned char *)rows;

    while (bytes > 0u) {
        const size_t piece = bytes < gone ? bytes : gone;
        memcpy(to, to + gone, piece);
        to += piece;
        bytes -= piece;
    }
}

#endif
