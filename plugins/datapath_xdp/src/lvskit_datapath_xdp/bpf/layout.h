/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * What the program and user space both read and write; ../layout.py says the same in Python, and
 * what each field means. Numbers are the machine's own unless a name ends in _be. */
#ifndef LVSKIT_LAYOUT_H
#define LVSKIT_LAYOUT_H

#include "kernel.h"

enum { SLOTS_PER_BUCKET = 4, RING_CAPACITY = 8192, NO_SLOT = 0xffffffff };

/* --- services --- */

enum { SERVICE_SLOPPY_TCP = 1, SERVICE_MARKS = 2 };

struct service_key {
	u8 address[16];
	u16 port_be;
	u8 protocol;
	u8 version;
};

struct service {
	u16 id;
	u8 flags;
	u8 unused;
};

enum { RING_TURN = 1, RING_SH, RING_MH };

struct places {
	u64 first;
	u16 size;
	u8 kind;
	u8 port;
	u32 unused;
};

/* One cache line, and the servers of the two sets of places, of which one is looked up. */
struct ring {
	u64 placed;
	u64 skipped;
	u32 current;
	u32 unused;
	struct places sets[2];
	u64 rest;
	u16 servers[2][RING_CAPACITY];
};

/* The compiler does not write this struct down, so no test can read where its members are. */
_Static_assert(__builtin_offsetof(struct ring, sets) == 24, "RING_HEAD");
_Static_assert(sizeof(struct places) == 16, "PLACES");
_Static_assert(__builtin_offsetof(struct ring, servers) == 64, "RING_SERVERS");

/* --- servers --- */

enum { SERVER_NONE, SERVER_TUNNEL4, SERVER_TUNNEL6, SERVER_PASS };
enum { SERVER_AVAILABLE = 1, SERVER_PMTU_DISC = 2, SERVER_ASK_SYN = 4 };

/* All that a packet reads is in the first cache line; what it writes is in the second. */
struct server {
	u8 kind;
	u8 flags;
	u16 mtu;
	u32 ifindex;
	u8 ethernet[14];
	u16 checksum;
	u8 outer[40];
	u32 identification;
	u8 unused[60];
};

/* --- connections --- */

union client4 {
	u64 key;
	struct {
		u32 address_be;
		u16 port_be;
		u16 service;
	};
};

struct entry {
	u16 server;
	u8 state;
	u8 flags;
};

union binding {
	u32 word;
	struct entry entry;
};

/* What is known of a connection, besides whose it is. */
struct connection {
	union binding binding;
	u32 seen;
};

struct slot4 {
	union client4 client;
	struct connection connection;
};

struct bucket4 {
	struct slot4 slots[SLOTS_PER_BUCKET];
};

union client6 {
	u32 key;
	struct {
		u16 port_be;
		u16 service;
	};
};

struct slot6 {
	u64 address[2];
	union client6 client;
	struct connection connection;
	u32 unused;
};

struct bucket6 {
	struct slot6 slots[SLOTS_PER_BUCKET];
};

enum { SLOT_PLACED = 1, SLOT_TELL = 2, SLOT_ONE = 0x08, SLOT_MANY = 0x80 };
enum { KEY_FREE, KEY_BUSY };

/* --- records --- */

enum { RECORD_MISS = 1, RECORD_PLACED, RECORD_STATE, RECORD_SYN };
enum { RECORD_FULL = 1 };
enum { SHORT_PACKET = 80, LONG_PACKET = 2000 };

struct record {
	u8 kind;
	u8 version;
	u8 tcp_flags;
	u8 state;
	u16 server;
	u8 protocol;
	u8 old_state;
	u32 slot;
	u32 seen;
	u32 buckets[2];
	u16 length;
	u16 flags;
	/* As in slots: so IPv4 is in the last four bytes of the address. */
	u8 address[16];
	u16 port_be;
	u16 service;
};

/* --- counters --- */

struct counters {
	u64 packets;
	u64 bytes;
};

enum reason {
	REASON_MISS,
	REASON_PLACED,
	REASON_STATE,
	REASON_LOST,
	REASON_REMOVED,
	REASON_NOT_IP,
	REASON_OPTIONS,
	REASON_FRAGMENT,
	REASON_PROTOCOL,
	REASON_MALFORMED,
	REASON_NOT_OURS,
	REASON_NOT_OPENING,
	REASON_SERVER,
	REASON_TTL,
	REASON_TOO_BIG,
	REASON_FAULT,
	REASON_NOT_HERE,
	REASON_SOURCE,
	REASONS,
};

struct reasons {
	u64 packets[REASONS];
};

#endif
