/* SPDX-License-Identifier: Apache-2.0 */
/* CRC32C; start with 0, feed the result of one piece into the next. */
#ifndef VS_CRC32C_H
#define VS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t vs_crc32c(uint32_t crc, const void *data, size_t n);
uint32_t vs_crc32c_tables(uint32_t crc, const void *data, size_t n); /* without the instruction */

#endif
