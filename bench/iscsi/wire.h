/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The little of iSCSI's wire format (RFC 7143 11) that the two ends in bench/ need, and pieces of memory whose every 4096 bytes begin with
 * their number. They are neither a target nor an initiator that anybody should use: what they do not expect ends them.
 */
#ifndef VS_BENCH_ISCSI_WIRE_H
#define VS_BENCH_ISCSI_WIRE_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BHS = 48, BLOCK = 512, PIECE = 4096, SEGMENT = 262144 };
enum {
	NOP_OUT = 0x00, COMMAND = 0x01, LOGIN = 0x03, LOGOUT = 0x06, NOP_IN = 0x20, RESPONSE = 0x21, LOGIN_RESPONSE = 0x23, DATA_IN = 0x25,
	LOGOUT_RESPONSE = 0x26, R2T = 0x31, IMMEDIATE = 0x40, FINAL = 0x80,
};

static inline uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
static inline void put32(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 24); p[1] = (uint8_t)(v >> 16); p[2] = (uint8_t)(v >> 8); p[3] = (uint8_t)v; }
static inline void put64(uint8_t *p, uint64_t v) { put32(p, (uint32_t)(v >> 32)); put32(p + 4, (uint32_t)v); }
static inline uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }
static inline uint32_t segment_of(const uint8_t *h) { return get32(h + 4) & 0xffffff; }
static inline void put_segment(uint8_t *h, uint32_t n) { h[5] = (uint8_t)(n >> 16); h[6] = (uint8_t)(n >> 8); h[7] = (uint8_t)n; }
static inline uint32_t padded(uint32_t n) { return (n + 3) & ~3u; }

__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static inline void send_all(int fd, const void *data, size_t n)
{
	const char *p = data;

	while (n) {
		ssize_t r = send(fd, p, n, MSG_NOSIGNAL);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			die("send: %s", strerror(errno));
		p += r;
		n -= (size_t)r;
	}
}

/* False: the other side has closed. */
static inline bool recv_all(int fd, void *data, size_t n)
{
	char *p = data;

	while (n) {
		ssize_t r = recv(fd, p, n, 0);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		p += r;
		n -= (size_t)r;
	}
	return true;
}

static inline void send_pdu(int fd, uint8_t *h, const void *data, uint32_t n)
{
	static const uint8_t zeroes[4];

	put_segment(h, n);
	send_all(fd, h, BHS);
	send_all(fd, data, n);
	send_all(fd, zeroes, padded(n) - n);
}

/* Keys stand as "key=value\0key=value\0". NULL: not among them. */
static inline const char *text_value(const char *text, uint32_t n, const char *key)
{
	size_t length = strlen(key);

	for (const char *p = text; p < text + n; p += strnlen(p, (size_t)(text + n - p)) + 1)
		if ((size_t)(text + n - p) > length && !strncmp(p, key, length) && p[length] == '=')
			return p + length + 1;
	return NULL;
}

static inline void wait_a_little(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static inline void number_pieces(uint8_t *data, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t number = first + i;

		memset(data + i * PIECE, 0xa5, PIECE);
		memcpy(data + i * PIECE, &number, 8);
	}
}

static inline uint64_t option_number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (!*text || *end)
		die("%s is not a number", text);
	return n;
}

#endif
