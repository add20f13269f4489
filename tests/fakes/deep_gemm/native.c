/* What is C++ in the real library: calls without a line of Python in them. A signal that comes meanwhile is handled by
   Python when they are over. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

void *PyObject_Call(void *callable, void *arguments, void *keywords);

/* Compile and publish. Returns the status of the command, or -1 if another process has published the entry before. */
int build(const char *command, const char *building, const char *entry, char *output, size_t size) {
    char rest[4096];
    FILE *pipe = popen(command, "r");
    size_t had = fread(output, 1, size - 1, pipe);
    output[had] = 0;
    while (fread(rest, 1, sizeof rest, pipe)) {}
    int status = pclose(pipe);
    return status ? status : entry[0] && rename(building, entry) ? -1 : 0;
}

/* A call like pybind11's, which has no Python frame of its own. */
void *native(void *self, void *arguments, void *keywords) {
    sigset_t urgent, before;
    sigemptyset(&urgent);
    sigaddset(&urgent, SIGURG);
    pthread_sigmask(SIG_BLOCK, &urgent, &before);
    void *result = PyObject_Call(self, arguments, keywords);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return result;
}
