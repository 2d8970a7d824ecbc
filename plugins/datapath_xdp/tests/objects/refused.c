/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A program that the verifier refuses: it reads the packet without asking how long that is. */
#include "kernel.h"

SEC("xdp")
int xdp_blind(struct xdp_md *ctx)
{
	return *(u8 *)(long)ctx->data;
}

char LICENSE[] SEC("license") = "GPL";
