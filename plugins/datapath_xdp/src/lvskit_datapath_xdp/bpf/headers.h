/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Headers as frames have them. Sources: IEEE 802.3, RFC 791, 8200, 2003, 2473, 3168. */
#ifndef LVSKIT_HEADERS_H
#define LVSKIT_HEADERS_H

#include "kernel.h"

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_IPV6 = 0x86dd };
enum { FRAGMENT_BE = 0xff3f }; /* more fragments, and the offset */
enum { IPIP = 4, IPV6 = 41, CE = 3, ECT0 = 2 };

struct ethernet {
	u8 target[6];
	u8 source[6];
	u16 type_be;
};

struct ipv4 {
	u8 version_length;
	u8 tos;
	u16 length_be;
	u16 identification_be;
	u16 fragment_be;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 source;
	u32 target;
};

struct ipv6 {
	u32 class_be;
	u16 length_be;
	u8 protocol;
	u8 hops;
	u32 source[4];
	u32 target[4];
};

#endif
