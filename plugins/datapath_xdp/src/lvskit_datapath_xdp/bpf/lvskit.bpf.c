/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The kernel fast path of lvskit: packets of known connections go to their servers from here. */
#include "director.h"

SEC("xdp")
int lvskit(struct xdp_md *ctx)
{
	return balance(ctx);
}

/* For a test run: the verdict is the lower half of the clock that connections are dated by. */
SEC("xdp")
int lvskit_clock(struct xdp_md *ctx)
{
	return jiffies64();
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
