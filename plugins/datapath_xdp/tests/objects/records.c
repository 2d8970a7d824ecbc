/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Records of two lengths into a small ring buffer; each eighth is given back unused. */
#include "kernel.h"

struct {
	UINT(type, RINGBUF);
	UINT(max_entries, 4096);
} records SEC(".maps");

u64 sequence;
u64 lost;

SEC("xdp")
int xdp_report(struct xdp_md *ctx)
{
	u64 number = sequence++;
	u64 *record;

	if (number % 3)
		record = ringbuf_reserve(&records, 24, 0);
	else
		record = ringbuf_reserve(&records, 12, 0);
	if (!record) {
		lost++;
		return XDP_DROP;
	}
	record[0] = number;
	if (number % 8 == 7)
		ringbuf_discard(record, 0);
	else
		ringbuf_submit(record, 0);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
