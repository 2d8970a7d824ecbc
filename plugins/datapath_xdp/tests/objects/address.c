/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A program that writes an address of the kernel into a map, which CAP_PERFMON alone allows. */
#include "kernel.h"

struct {
	UINT(type, HASH);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u64);
} seen SEC(".maps");

SEC("xdp")
int xdp_tell(struct xdp_md *ctx)
{
	u32 zero = 0;
	u64 *value = map_lookup(&seen, &zero);

	if (value)
		*value = (u64)ctx;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
