/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A map that wants what the loader does not do. */
#include "kernel.h"

struct {
	UINT(type, ARRAY);
	UINT(max_entries, 1);
	UINT(pinning, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} kept SEC(".maps");

SEC("xdp")
int xdp_pass(struct xdp_md *ctx)
{
	u32 zero = 0;

	return map_lookup(&kept, &zero) ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
