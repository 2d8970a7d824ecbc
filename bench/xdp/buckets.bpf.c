/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The program as it is. */
#include "../../plugins/datapath_xdp/src/lvskit_datapath_xdp/bpf/director.h"
#include "bench.h"
