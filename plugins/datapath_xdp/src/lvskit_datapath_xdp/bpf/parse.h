/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * From the bytes of a frame to what the program goes by. Sources: RFC 9293, 768. */
#ifndef LVSKIT_PARSE_H
#define LVSKIT_PARSE_H

#include "headers.h"
#include "maps.h"

enum { FIN = 1, SYN = 2, RST = 4 };
enum { DF_BE = 0x0040 };

/* The ports are in the same place for both; the rest is TCP's. */
struct transport {
	u16 source_be;
	u16 target_be;
	u32 sequence[2];
	u8 offset;
	u8 flags;
	u16 unused[3];
};

enum { UDP_HEADER = 8 };

/* A packet, as far as it matters. An IPv4 address is in address[0], the rest 0. */
struct packet {
	u64 address[2];
	u32 length;
	u16 port_be;
	u16 df_be;
	u8 protocol;
	u8 flags;
	u8 tos;
	u8 ttl;
};

/* Read ports and flags behind an IP header; return the reason to pass, or -1. `available` is what
 * the IP header says there is behind it, less than 0 where it contradicts itself. */
INLINE int parse_transport(struct packet *packet, struct service_key *to, void *start, void *end,
			   int available)
{
	struct transport *transport = start;

	/* The compiler knows that the length, which was checked, implies this; the verifier does not. */
	opaque(end);
	if (start + UDP_HEADER > end || available < UDP_HEADER)
		return REASON_MALFORMED;
	packet->port_be = transport->source_be;
	to->port_be = transport->target_be;
	to->protocol = packet->protocol;
	packet->flags = 0;
	if (packet->protocol == UDP)
		return -1;
	opaque(end);
	if (start + sizeof(*transport) > end || available < (int)sizeof(*transport))
		return REASON_MALFORMED;
	packet->flags = transport->flags;
	return -1;
}

/* Whether the checksum of a header without options is right (RFC 1071): the host looks at it before
 * anybody else, and drops what is not. */
INLINE int is_sound(const struct ipv4 *ip)
{
	const u32 *words = (const u32 *)ip;
	u64 sum = (u64)words[0] + words[1] + words[2] + words[3] + words[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff || sum == 2 * 0xffff; /* it has 17 bits, and is not 0 */
}

/* Read a packet behind its Ethernet header; return the reason to pass, or -1. */
INLINE int parse4(struct packet *packet, struct service_key *to, void *start, void *end)
{
	struct ipv4 *ip = start;

	if (start + sizeof(*ip) > end)
		return REASON_MALFORMED;
	if (ip->version_length != 0x45)
		return ip->version_length >> 4 == 4 && (ip->version_length & 15) > 5 ?
			       REASON_OPTIONS :
			       REASON_MALFORMED;
	if (ip->fragment_be & FRAGMENT_BE)
		return REASON_FRAGMENT;
	if (ip->protocol != TCP && ip->protocol != UDP)
		return REASON_PROTOCOL;
	packet->length = be16(ip->length_be);
	if (start + packet->length > end || !is_sound(ip))
		return REASON_MALFORMED;
	packet->address[0] = ip->source;
	packet->address[1] = 0;
	packet->protocol = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	packet->df_be = ip->fragment_be & DF_BE;
	*(u64 *)&to->address[0] = ip->target;
	*(u64 *)&to->address[8] = 0;
	to->version = 4;
	return parse_transport(packet, to, ip + 1, end, packet->length - (int)sizeof(*ip));
}

/* The same for IPv6; extension headers go the portable way. */
INLINE int parse6(struct packet *packet, struct service_key *to, void *start, void *end)
{
	struct ipv6 *ip = start;
	u32 payload;

	if (start + sizeof(*ip) > end || (ip->class_be & 0xf0) != 0x60)
		return REASON_MALFORMED;
	if (ip->protocol != TCP && ip->protocol != UDP)
		return REASON_PROTOCOL;
	payload = be16(ip->length_be);
	if (start + sizeof(*ip) + payload > end)
		return REASON_MALFORMED;
	packet->length = payload + sizeof(*ip);
	__builtin_memcpy(packet->address, ip->source, sizeof(ip->source));
	packet->protocol = ip->protocol;
	packet->tos = be32(ip->class_be) >> 20;
	packet->ttl = ip->hops;
	packet->df_be = 0;
	__builtin_memcpy(to->address, ip->target, sizeof(ip->target));
	to->version = 6;
	return parse_transport(packet, to, ip + 1, end, payload);
}

#endif
