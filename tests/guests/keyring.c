/* A keyring of the process and one of a thread, with a key, which only this kernel can know. */
#include "wl.h"
#define GET_KEYRING_ID 0
#define READ 11
#define THREAD_KEYRING -1
#define PROCESS_KEYRING -2
static long keyctl(int what, long a, long b, long c)
{
	return syscall(SYS_keyctl, what, a, b, c, 0);
}
int main(int argc, char **argv)
{
	char secret[8] = { 0 };
	wl_start(argc, argv);
	long process = keyctl(GET_KEYRING_ID, PROCESS_KEYRING, 1, 0);
	long thread = keyctl(GET_KEYRING_ID, THREAD_KEYRING, 1, 0);
	if (process < 0 && errno == ENOSYS)
		printf("no keys\n");
	else
		MUST(process > 0 && thread > 0);
	long key = syscall(SYS_add_key, "user", "crust", "secret", 6, PROCESS_KEYRING);
	wl_wait();
	if (process > 0) {
		MUST(keyctl(GET_KEYRING_ID, PROCESS_KEYRING, 0, 0) == process);
		MUST(keyctl(GET_KEYRING_ID, THREAD_KEYRING, 0, 0) == thread);
		MUST(keyctl(READ, key, (long)secret, sizeof(secret)) == 6 && !memcmp(secret, "secret", 6));
	}
	wl_ok();
}
