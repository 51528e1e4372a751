/* Objects of the bpf machine that a checkpoint cannot carry: maps of other objects, queues with something in them, a program, and a map
 * that it uses. */
#include "wl.h"
#include <linux/bpf.h>
static long bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof(*a)); }
static int make(int type, int ks, int vs, int n, int inner, const char *name)
{
	union bpf_attr a = { .map_type = type, .key_size = ks, .value_size = vs, .max_entries = n, .inner_map_fd = inner };
	strcpy(a.map_name, name);
	int fd = bpf(BPF_MAP_CREATE, &a);
	MUST(fd >= 0);
	printf("%s %d\n", name, fd);
	return fd;
}
int main(int argc, char **argv)
{
	uint64_t v = 7;
	wl_start(argc, argv);
	int array = make(BPF_MAP_TYPE_ARRAY, 4, 8, 2, 0, "used"), queue = make(BPF_MAP_TYPE_QUEUE, 0, 8, 2, 0, "queue");
	int stack = make(BPF_MAP_TYPE_STACK, 0, 8, 2, 0, "stack");
	make(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2, 0, "programs");
	make(BPF_MAP_TYPE_HASH_OF_MAPS, 4, 4, 2, array, "maps");
	make(BPF_MAP_TYPE_SOCKMAP, 4, 4, 2, 0, "sockets");
	union bpf_attr a = { .map_fd = queue, .value = (uint64_t)&v };
	MUST(!bpf(BPF_MAP_UPDATE_ELEM, &a));
	a.map_fd = stack;
	MUST(!bpf(BPF_MAP_UPDATE_ELEM, &a));
	struct bpf_insn code[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = array }, { 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 }, { .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr p = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 4, .insns = (uint64_t)code, .license = (uint64_t)"GPL" };
	strcpy(p.prog_name, "counts");
	int program = bpf(BPF_PROG_LOAD, &p);
	MUST(program >= 0);
	printf("program %d\n", program);
	wl_wait();
	MUST(fcntl(program, F_GETFD) >= 0);
	a.map_fd = queue;
	v = 0;
	MUST(!bpf(BPF_MAP_LOOKUP_ELEM, &a) && v == 7);
	wl_ok();
}
