/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Constants that are addresses, which are nobody's to fill in. */
#include "kernel.h"

static const u32 one = 1, two = 2;
const u32 *const volatile CHOICE[2] = { &one, &two };

SEC("xdp")
int xdp_point(struct xdp_md *ctx)
{
	return *CHOICE[ctx->rx_queue_index & 1];
}

char LICENSE[] SEC("license") = "GPL";
