/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * IPIP: the inner time to live decremented, an outer header put in front. The bytes are those of
 * lvskit_fwd_tunnel. Sources: RFC 2003, 2473, 6040 by the behaviour of Linux
 * net/netfilter/ipvs/ip_vs_xmit.c (ip_vs_tunnel_xmit). */
#ifndef LVSKIT_TUNNEL_H
#define LVSKIT_TUNNEL_H

#include "parse.h"

/* Whether a tunnel takes a packet: the reason why not, or -1. */
INLINE int refused(const struct server *server, const struct packet *packet)
{
	if (packet->ttl <= 1)
		return REASON_TTL;
	return packet->length > server->mtu ? REASON_TOO_BIG : -1;
}

INLINE int decrement_ttl(struct xdp_md *ctx, int version)
{
	void *start = (void *)(long)ctx->data + sizeof(struct ethernet);
	void *end = (void *)(long)ctx->data_end;

	if (version == 4) {
		struct ipv4 *ip = start;

		if (start + sizeof(*ip) > end)
			return -1;
		/* RFC 1624: one less in the upper byte is 0x0100 more in the sum, carried around. */
		u32 sum = ip->checksum + be16(0x0100);

		ip->checksum = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		struct ipv6 *ip = start;

		if (start + sizeof(*ip) > end)
			return -1;
		ip->hops--;
	}
	return 0;
}

/* Remove what follows the packet: Ethernet pads short frames. */
INLINE int trim(struct xdp_md *ctx, const struct packet *packet)
{
	long size = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	opaque(size); /* the verifier knows no 32-bit difference of pointers */
	long excess = size - packet->length - (long)sizeof(struct ethernet);

	return excess > 0 ? xdp_adjust_tail(ctx, -excess) : 0;
}

INLINE void write_outer4(u32 *outer, struct server *server, const struct packet *packet, u8 tos,
			 u8 protocol)
{
	u16 df_be = server->flags & SERVER_PMTU_DISC ? packet->df_be : 0;
	u16 identification_be = 0;
	u32 *template = (u32 *)server->outer;

	/* RFC 6864: only what may be split needs a number. */
	if (!df_be)
		identification_be = be16(__sync_fetch_and_add(&server->identification, 1) + 1);
	u16 length_be = be16(packet->length + sizeof(struct ipv4));
	u16 life = (packet->ttl - 1) | protocol << 8;
	u32 sum = server->checksum + (tos << 8) + length_be + identification_be + df_be + life;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	outer[0] = template[0] | tos << 8 | (u32)length_be << 16;
	outer[1] = identification_be | (u32)df_be << 16;
	outer[2] = life | (~sum & 0xffff) << 16;
	outer[3] = template[3];
	outer[4] = template[4];
}

INLINE void write_outer6(u32 *outer, const struct server *server, const struct packet *packet,
			 u8 tos, u8 protocol)
{
	const u32 *template = (const u32 *)server->outer;

	outer[0] = template[0] | be32(tos << 20);
	outer[1] = be16(packet->length) | protocol << 16 | (packet->ttl - 1) << 24;
#pragma unroll
	for (int at = 2; at < 10; at++)
		outer[at] = template[at];
}

/* Put a packet into a server's tunnel and return what sends it. `kind` is the server's. */
INLINE int encapsulate(struct xdp_md *ctx, struct server *server, const struct packet *packet,
		       int version, int kind)
{
	const int size = kind == SERVER_TUNNEL4 ? sizeof(struct ipv4) : sizeof(struct ipv6);
	u8 tos = (packet->tos & 3) == CE ? (packet->tos & 0xfc) | ECT0 : packet->tos;
	u8 protocol = version == 4 ? IPIP : IPV6;

	if (xdp_adjust_head(ctx, -size))
		return drop(REASON_FAULT);
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (start + sizeof(struct ethernet) + size > end)
		return drop(REASON_FAULT);
	__builtin_memcpy(start, server->ethernet, sizeof(server->ethernet));
	if (kind == SERVER_TUNNEL4)
		write_outer4(start + sizeof(struct ethernet), server, packet, tos, protocol);
	else
		write_outer6(start + sizeof(struct ethernet), server, packet, tos, protocol);
	return server->ifindex == ctx->ingress_ifindex ? XDP_TX : redirect(server->ifindex, 0);
}

/* Forward a packet that is not `refused`. */
INLINE int forward(struct xdp_md *ctx, struct server *server, const struct packet *packet,
		   int version)
{
	if (decrement_ttl(ctx, version) || trim(ctx, packet))
		return drop(REASON_FAULT);
	if (server->kind == SERVER_TUNNEL4)
		return encapsulate(ctx, server, packet, version, SERVER_TUNNEL4);
	return encapsulate(ctx, server, packet, version, SERVER_TUNNEL6);
}

#endif
