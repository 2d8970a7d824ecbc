/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Programs for test runs: each writes the packet of its next flow over the last one, lets the
 * program of the plugin at it, and takes the outer header off again, which a test run would not.
 * What is measured without the plugin's program is subtracted. */

static u64 hash_state = 1;
u64 next_flow;
u64 unexpected;
const volatile u32 flows = 1;
const volatile u32 first_client = 0x0a000000;

INLINE u32 any_flow(void)
{
	hash_state ^= hash_state << 13;
	hash_state ^= hash_state >> 7;
	hash_state ^= hash_state << 17;
	return (hash_state >> 32) * flows >> 32;
}

/* Write time to live and source, and a checksum that is right (RFC 1071): by whole words, as they
 * are read, for a processor that gathers a word from several stores waits for them. */
INLINE void seal(struct ipv4 *ip, u32 source)
{
	u32 *words = (u32 *)ip, life = 64 | TCP << 8;
	u64 sum = (u64)words[0] + words[1] + life + source + words[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	words[2] = life | (u32)(u16)~sum << 16;
	words[3] = source;
}

/* Write what differs between flows, or was changed; the rest of the packet is user space's. */
INLINE int rewrite(struct xdp_md *ctx, u32 flow, int version)
{
	struct ethernet *ethernet = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(ethernet + 1) > end)
		return -1;
	__builtin_memset(ethernet->target, 0, sizeof(ethernet->target));
	if (version == 4) {
		struct ipv4 *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return -1;
		ethernet->type_be = be16(ETHERTYPE_IPV4);
		seal(ip, be32(first_client + flow));
	} else {
		struct ipv6 *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return -1;
		ethernet->type_be = be16(ETHERTYPE_IPV6);
		ip->hops = 64;
		ip->source[3] = be32(flow);
	}
	return 0;
}

INLINE int measured(struct xdp_md *ctx, u32 flow, int version, int expected, int outer)
{
	if (rewrite(ctx, flow, version))
		return XDP_ABORTED;
	int verdict = balance(ctx);

	if (verdict != expected)
		unexpected++;
	if (verdict == XDP_TX)
		xdp_adjust_head(ctx, outer);
	return verdict;
}

INLINE int wrapper(struct xdp_md *ctx, u32 flow, int version)
{
	if (rewrite(ctx, flow, version))
		return XDP_ABORTED;
	xdp_adjust_head(ctx, 0);
	return XDP_TX;
}

SEC("xdp")
int wrapper4(struct xdp_md *ctx)
{
	return wrapper(ctx, any_flow(), 4);
}

SEC("xdp")
int hit4(struct xdp_md *ctx)
{
	return measured(ctx, any_flow(), 4, XDP_TX, sizeof(struct ipv4));
}

SEC("xdp")
int wrapper6(struct xdp_md *ctx)
{
	return wrapper(ctx, any_flow(), 6);
}

SEC("xdp")
int hit6(struct xdp_md *ctx)
{
	return measured(ctx, any_flow(), 6, XDP_TX, sizeof(struct ipv4));
}

/* Over a cable: what forwards, the least that anything could do there, and the end of the way. The
 * packets are a wrapper's. */
u64 arrived;

SEC("xdp")
int forwards(struct xdp_md *ctx)
{
	return balance(ctx);
}

SEC("xdp")
int reflects(struct xdp_md *ctx)
{
	return XDP_TX;
}

SEC("xdp")
int swallows(struct xdp_md *ctx)
{
	arrived++;
	return XDP_DROP;
}

/* New flows, one after another: the service has a ring, or has none. */
SEC("xdp")
int placed4(struct xdp_md *ctx)
{
	return measured(ctx, next_flow++, 4, XDP_TX, sizeof(struct ipv4));
}

SEC("xdp")
int missed4(struct xdp_md *ctx)
{
	return measured(ctx, next_flow++, 4, XDP_DROP, sizeof(struct ipv4));
}

/* Enter the next flow of the packet's service as an established connection. */
INLINE int enter(struct xdp_md *ctx, int version)
{
	void *end = (void *)(long)ctx->data_end;
	u32 flow = next_flow++;
	struct packet packet;
	struct service_key to;

	if (rewrite(ctx, flow, version))
		return XDP_ABORTED;
	void *start = (void *)(long)ctx->data + sizeof(struct ethernet);
	int reason = version == 4 ? parse4(&packet, &to, start, end) :
				    parse6(&packet, &to, start, end);
	struct service *service = map_lookup(&services, &to);

	if (reason >= 0 || !service)
		return XDP_ABORTED;
	struct place place = version == 4 ? place4(&packet, service->id) :
					    place6(&packet, service->id);
	struct connection connection = { { .entry = { 1 + flow % 16, ES, 0 } }, seen_now() };
	u32 number = version == 4 ? insert4(&place, &connection) : insert6(&place, &connection);

	if (number == NO_SLOT)
		unexpected++;
	return XDP_TX;
}

SEC("xdp")
int fill4(struct xdp_md *ctx)
{
	return enter(ctx, 4);
}

SEC("xdp")
int fill6(struct xdp_md *ctx)
{
	return enter(ctx, 6);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
