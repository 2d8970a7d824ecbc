/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A program that needs a function which no BPF object has. */
#include "kernel.h"

extern int measure(struct xdp_md *ctx);

SEC("xdp")
int xdp_outside(struct xdp_md *ctx)
{
	return measure(ctx);
}

char LICENSE[] SEC("license") = "GPL";
