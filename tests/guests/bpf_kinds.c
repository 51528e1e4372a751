/* Maps of the bpf machine of every kind whose content is data, with a value for each processor where there is one, empty queues, flags,
 * descriptors of one map with access modes of their own, a hash of many keys, arrays that are mapped. */
#include "wl.h"
#include <linux/bpf.h>
#include <poll.h>
#define MANY 50000
#define CPUS 1024
static long bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof(*a)); }
static int make(int type, int ks, int vs, int n, int flags)
{
	union bpf_attr a = { .map_type = type, .key_size = ks, .value_size = vs, .max_entries = n, .map_flags = flags };
	strcpy(a.map_name, "kinds");
	int fd = bpf(BPF_MAP_CREATE, &a);
	MUST(fd >= 0);
	return fd;
}
static long element(int cmd, int fd, const void *k, void *v)
{
	union bpf_attr a = { .map_fd = fd, .key = (uint64_t)k, .value = (uint64_t)v };
	return bpf(cmd, &a);
}
#define PUT(fd, k, v) element(BPF_MAP_UPDATE_ELEM, fd, k, v)
#define GET(fd, k, v) element(BPF_MAP_LOOKUP_ELEM, fd, k, v)
static struct bpf_map_info info(int fd)
{
	struct bpf_map_info i = { 0 };
	union bpf_attr a = { .info = { .bpf_fd = fd, .info_len = sizeof(i), .info = (uint64_t)&i } };
	MUST(!bpf(BPF_OBJ_GET_INFO_BY_FD, &a));
	return i;
}
static int again(int fd, int flags)
{
	union bpf_attr a = { .map_id = info(fd).id, .open_flags = flags };
	int other = bpf(BPF_MAP_GET_FD_BY_ID, &a);
	MUST(other >= 0);
	return other;
}
int main(int argc, char **argv)
{
	static uint64_t v[CPUS], w[CPUS];
	struct { uint32_t bits; uint8_t ip[4]; } net = { 24, { 10, 1, 2, 0 } }, host = { 32, { 10, 1, 2, 3 } };
	uint32_t k;
	int n = sysconf(_SC_NPROCESSORS_CONF);
	wl_start(argc, argv);
	int many = make(BPF_MAP_TYPE_HASH, 4, 8, MANY + 10, BPF_F_NO_PREALLOC);
	int cpu_hash = make(BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 4, 0), cpu_array = make(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, 3, 0);
	int lru = make(BPF_MAP_TYPE_LRU_HASH, 4, 8, 1000, 0), trie = make(BPF_MAP_TYPE_LPM_TRIE, 8, 4, 9, BPF_F_NO_PREALLOC);
	int queue = make(BPF_MAP_TYPE_QUEUE, 0, 8, 5, 0), stack = make(BPF_MAP_TYPE_STACK, 0, 8, 5, 0);
	int ring = make(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0), sealed = make(BPF_MAP_TYPE_ARRAY, 4, 8, 2, BPF_F_RDONLY_PROG | BPF_F_MMAPABLE);
	int other = make(BPF_MAP_TYPE_ARRAY, 4, 8, 2000, BPF_F_MMAPABLE);
	uint64_t *here = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, other, 4096);
	const uint64_t *read_only = mmap(NULL, 4096, PROT_READ, MAP_SHARED, sealed, 0);
	MUST(here != MAP_FAILED && read_only != MAP_FAILED);
	int empty = make(BPF_MAP_TYPE_HASH, 4, 8, 7, 0);
	int reader = again(many, BPF_F_RDONLY), writer = again(many, BPF_F_WRONLY), child = dup(reader);
	int alone = again(empty, BPF_F_WRONLY);
	close(empty);
	for (k = 0; k < MANY; k++)
		MUST((v[0] = k * 0x100000001ull, !PUT(many, &k, v)));
	for (int i = 0; i < n; i++)
		v[i] = 0xabc0000000 + i;
	k = 77;
	MUST(!PUT(cpu_hash, &k, v) && (k = 2, !PUT(cpu_array, &k, v)));
	for (k = 0; k < 100; k++)
		MUST((v[0] = ~k, !PUT(lru, &k, v)));
	v[0] = 24;
	MUST(!PUT(trie, &net, v));
	k = 1;
	v[0] = 0x123456789abcdef;
	MUST(!PUT(sealed, &k, v));
	here[3] = 33; /* element 515 */
	wl_wait();
	for (k = 0; k < MANY; k++)
		MUST(!GET(reader, &k, v) && v[0] == k * 0x100000001ull);
	MUST(GET(reader, &k, v) < 0 && errno == ENOENT);
	/* one map, three ways in */
	MUST((v[0] = 5, PUT(reader, &k, v)) < 0 && errno == EPERM && GET(writer, &k, v) < 0 && errno == EPERM);
	MUST((v[0] = 5, !PUT(writer, &k, v)) && !GET(many, &k, w) && w[0] == 5 && !GET(child, &k, w));
	MUST(info(reader).id == info(writer).id && info(many).map_flags == BPF_F_NO_PREALLOC);
	MUST(GET(alone, &k, v) < 0 && errno == EPERM && !PUT(alone, &k, v) && info(alone).max_entries == 7);
	memset(v, 0, sizeof(v));
	k = 77;
	MUST(!GET(cpu_hash, &k, v));
	for (int i = 0; i < n; i++)
		MUST(v[i] == 0xabc0000000ull + i);
	MUST((k = 2, !GET(cpu_array, &k, v)));
	for (int i = 0; i < n; i++)
		MUST((uint32_t)v[i] == 0xc0000000u + i);
	for (k = 0; k < 100; k++)
		MUST(!GET(lru, &k, v) && v[0] == (uint64_t)(uint32_t)~k);
	MUST(!GET(trie, &host, v) && (uint32_t)v[0] == 24);
	v[0] = 1;
	MUST(GET(queue, NULL, w) < 0 && errno == ENOENT && !PUT(queue, NULL, v) && !GET(queue, NULL, w) && w[0] == 1);
	MUST(GET(stack, NULL, w) < 0 && errno == ENOENT && info(stack).type == BPF_MAP_TYPE_STACK);
	MUST(info(ring).max_entries == 4096 && info(ring).type == BPF_MAP_TYPE_RINGBUF);
	k = 1;
	MUST(!GET(sealed, &k, v) && v[0] == 0x123456789abcdef && info(sealed).map_flags == (BPF_F_RDONLY_PROG | BPF_F_MMAPABLE));
	MUST(!strcmp(info(sealed).name, "kinds"));
	MUST(read_only[1] == 0x123456789abcdef && here[3] == 33);
	here[4] = 44;
	MUST((k = 515, !GET(other, &k, v)) && v[0] == 33 && (k = 516, !GET(other, &k, v)) && v[0] == 44);
	MUST((v[0] = 6, k = 1, !PUT(sealed, &k, v)) && read_only[1] == 6);
	wl_ok();
}
