/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The other end of the tunnel, on a real server: the outer header of a packet for one of its VIPs is
 * removed, and the stack gets what was inside. Whatever else comes is passed on as it is. */
#include "headers.h"

/* What an address is to this host; ../decapsulator.py says the same in Python. */
enum { ROLE_OWN = 1, ROLE_VIP = 2, ROLE_DIRECTOR = 4, ROLE_OF_ANY_DIRECTOR = 8 };

/* IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which is on no wire. */
struct address {
	u32 words[4];
};

struct {
	UINT(type, HASH);
	UINT(max_entries, 4096);
	TYPE(key, struct address);
	TYPE(value, u32);
} addresses SEC(".maps");

/* An outer header, as far as it matters; `payload` in bytes, 0 where the packet is no tunnel's. */
struct outer {
	struct address source;
	struct address target;
	u32 payload;
	u8 protocol;
	u8 ecn;
};

INLINE u32 roles_of(const struct address *address)
{
	u32 *roles = map_lookup(&addresses, address);

	return roles ? *roles : 0;
}

INLINE void set4(struct address *address, u32 value)
{
	address->words[0] = address->words[1] = 0;
	address->words[2] = be32(0xffff);
	address->words[3] = value;
}

/* The stack, which would verify the outer header's checksum, does not see it. RFC 1071; where the
 * sum is a multiple of 0xffff, as it has to be, folding it twice is enough. */
INLINE int checksum_holds(const struct ipv4 *ip)
{
	const u32 *words = (const u32 *)ip;
	u64 sum = (u64)words[0] + words[1] + words[2] + words[3] + words[4];

	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

/* A header with options is for the stack: no director writes one. So is a fragment. */
INLINE void read_outer4(struct outer *outer, const struct ipv4 *ip)
{
	u32 length = be16(ip->length_be);

	outer->payload = 0;
	if (ip->version_length != 0x45 || ip->fragment_be & FRAGMENT_BE ||
	    length < sizeof(*ip) || !checksum_holds(ip))
		return;
	set4(&outer->source, ip->source);
	set4(&outer->target, ip->target);
	outer->payload = length - sizeof(*ip);
	outer->protocol = ip->protocol;
	outer->ecn = ip->tos & CE;
}

/* Extension headers, the fragment header among them, are for the stack. */
INLINE void read_outer6(struct outer *outer, const struct ipv6 *ip)
{
	outer->payload = 0;
	if ((ip->class_be & 0xf0) != 0x60)
		return;
	__builtin_memcpy(&outer->source, ip->source, sizeof(outer->source));
	__builtin_memcpy(&outer->target, ip->target, sizeof(outer->target));
	outer->payload = be16(ip->length_be);
	outer->protocol = ip->protocol;
	outer->ecn = be32(ip->class_be) >> 20 & CE;
}

/* Whether this host takes such a packet out of the tunnel. */
INLINE int is_ours(const struct outer *outer, const struct address *inner)
{
	u32 roles = roles_of(inner);

	if (!(roles & ROLE_VIP) || !(roles_of(&outer->target) & ROLE_OWN))
		return 0;
	return roles & ROLE_OF_ANY_DIRECTOR || roles_of(&outer->source) & ROLE_DIRECTOR;
}

/* RFC 6040 section 4.2, as Linux has it (INET_ECN_decapsulate of include/net/inet_ecn.h): a mark on
 * the outer header goes to the inner one; where the flow does not understand it, return -1. */
INLINE int mark4(struct ipv4 *ip, const struct outer *outer)
{
	u8 ecn = ip->tos & CE;

	if (outer->ecn != CE)
		return 0;
	if (!ecn)
		return -1;
	/* RFC 1624: the checksum falls by what the field rises, in the lower byte on the wire. */
	u32 sum = (~ip->checksum & 0xffff) + be16(CE - ecn);

	ip->checksum = ~((sum & 0xffff) + (sum >> 16));
	ip->tos |= CE;
	return 0;
}

INLINE int mark6(struct ipv6 *ip, const struct outer *outer)
{
	if (outer->ecn != CE)
		return 0;
	if (!(ip->class_be & be32(CE << 20)))
		return -1;
	ip->class_be |= be32(CE << 20);
	return 0;
}

/* Move the Ethernet header over the end of the outer header, and remove what is in front of it. */
INLINE int unwrap(struct xdp_md *ctx, const struct ethernet *old, struct ethernet *new, int size,
		  u16 type)
{
	__builtin_memcpy(new, old, sizeof(old->target) + sizeof(old->source));
	new->type_be = be16(type);
	return xdp_adjust_head(ctx, size) ? XDP_ABORTED : XDP_PASS;
}

/* Take a packet out of the tunnel; `size` of the outer header. A length that contradicts the outer
 * one is for the stack to count. */
INLINE int decapsulate(struct xdp_md *ctx, const struct outer *outer, int size)
{
	struct ethernet *old = (void *)(long)ctx->data;
	struct ethernet *new = (void *)old + size;
	void *start = new + 1, *end = (void *)(long)ctx->data_end;
	struct address target;

	if (outer->protocol == IPIP) {
		struct ipv4 *ip = start;

		if (start + sizeof(*ip) > end)
			return XDP_PASS;
		u32 length = be16(ip->length_be), head = (ip->version_length & 15) * 4;

		if (ip->version_length >> 4 != 4 || head < sizeof(*ip) || length < head ||
		    length > outer->payload)
			return XDP_PASS;
		set4(&target, ip->target);
		if (!is_ours(outer, &target))
			return XDP_PASS;
		if (mark4(ip, outer))
			return XDP_DROP;
		return unwrap(ctx, old, new, size, ETHERTYPE_IPV4);
	}
	if (outer->protocol == IPV6) {
		struct ipv6 *ip = start;

		if (start + sizeof(*ip) > end || (ip->class_be & 0xf0) != 0x60 ||
		    be16(ip->length_be) + sizeof(*ip) > outer->payload)
			return XDP_PASS;
		__builtin_memcpy(&target, ip->target, sizeof(target));
		if (!is_ours(outer, &target))
			return XDP_PASS;
		if (mark6(ip, outer))
			return XDP_DROP;
		return unwrap(ctx, old, new, size, ETHERTYPE_IPV6);
	}
	return XDP_PASS;
}

/* Packets may be in several pieces: headers are in the first. */
SEC("xdp.frags")
int lvskit_decap(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *frame = start;
	struct outer outer;

	if (start + sizeof(*frame) > end)
		return XDP_PASS;
	start += sizeof(*frame);
	if (frame->type_be == be16(ETHERTYPE_IPV4)) {
		if (start + sizeof(struct ipv4) > end)
			return XDP_PASS;
		read_outer4(&outer, start);
		return outer.payload ? decapsulate(ctx, &outer, sizeof(struct ipv4)) : XDP_PASS;
	}
	if (frame->type_be == be16(ETHERTYPE_IPV6)) {
		if (start + sizeof(struct ipv6) > end)
			return XDP_PASS;
		read_outer6(&outer, start);
		return outer.payload ? decapsulate(ctx, &outer, sizeof(struct ipv6)) : XDP_PASS;
	}
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
