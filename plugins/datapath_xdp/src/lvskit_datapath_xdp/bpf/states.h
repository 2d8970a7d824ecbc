/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * TCP states as a client's packets move them, where the server answers the client directly.
 * Source: Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, by behaviour. */
#ifndef LVSKIT_STATES_H
#define LVSKIT_STATES_H

#include "kernel.h"

enum { NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA, STATES = 16 };

/* The packet may begin another connection: Python is asked. */
enum { ASK = 0xff };

enum { TCP_FLAGS = 0x1f };

/* By FIN, SYN, RST, PSH and ACK, the lowest bit first: RST counts before SYN, SYN before FIN, FIN
 * before ACK; none of them closes. */
#define HALF(none, syn, fin, rst, syn_rst) none, fin, syn, syn, rst, rst, syn_rst, syn_rst
#define EVENTS(syn, fin, ack, rst, syn_rst)                                       \
	{                                                                         \
		HALF(CL, syn, fin, rst, syn_rst), HALF(CL, syn, fin, rst, syn_rst),   \
		HALF(ack, syn, fin, rst, syn_rst), HALF(ack, syn, fin, rst, syn_rst), \
	}
#define STATE(syn, fin, ack, rst) EVENTS(syn, fin, ack, rst, rst)
/* Whether a SYN reuses the ports of such a connection is a setting: conn_reuse_mode. */
#define ENDING(fin, ack, rst) EVENTS(ASK, fin, ack, rst, ASK)

static const u8 next_states[STATES][TCP_FLAGS + 1] = {
	[NO] = STATE(SR, CL, ES, CL), [ES] = STATE(ES, FW, ES, CL), [SS] = STATE(ES, SS, SS, CL),
	[SR] = STATE(SR, TW, ES, SR), [FW] = ENDING(FW, FW, CL),    [TW] = ENDING(TW, TW, CL),
	[CL] = ENDING(CL, CL, CL),    [CW] = STATE(SR, CW, CW, CL), [LA] = STATE(SR, LA, CL, LA),
	[LI] = STATE(SR, LI, LI, LI), [SA] = STATE(SR, TW, ES, CL),
};

INLINE u8 next_state(u8 state, u8 flags)
{
	return next_states[state & (STATES - 1)][flags & TCP_FLAGS];
}

#endif
