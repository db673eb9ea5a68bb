/* What the supervisors of benchmarks/supervise.py supervise: as small as can be, so that they are what is measured.
 *
 * child serve PORT STAMPS         answers as an idle vLLM, as far as a supervisor asks; ends on SIGTERM
 * child flood LINES RATE REPORT   so many lines, so many a second; then it stays
 * child zombies COUNT             and a process of its own that has so many ended children; both stay
 *
 * STAMPS gets a line for each start: port, pid, nanoseconds of CLOCK_MONOTONIC. REPORT gets the seconds that the
 * lines took, and the longest of one write.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 500, LINE = 200 };

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* One write, since several processes share the file; it is there whole or not at all. */
static void say(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (file < 0 || write(file, text, strlen(text)) < 0) exit(1);
    close(file);
}

static void stay(void) {
    for (;;) pause();
}

static void answer(int client) {
    char asked[8192], said[8192];
    size_t size = 0;
    const char *end = NULL, *length, *body = "{\"choices\":[{}]}";
    while (!end || size < (size_t)(end + 4 - asked) + ((length = strstr(asked, "Content-Length: ")) ? atoi(length + 16) : 0)) {
        ssize_t part = read(client, asked + size, sizeof asked - 1 - size);
        if (part <= 0) return;
        asked[size += part] = 0;
        end = strstr(asked, "\r\n\r\n");
    }
    if (!strncmp(asked, "GET /metrics", 12))
        body = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 1\n";
    int all = snprintf(said, sizeof said, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    if (write(client, said, all) < 0) return;
}

static int serve(int port, const char *stamps) {
    char text[96];
    snprintf(text, sizeof text, "%d %d %lld\n", port, getpid(), now());
    say(stamps, text);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) return 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        answer(client);
        close(client);
    }
}

static int flood(long lines, long rate, const char *report) {
    static char text[AT_ONCE * LINE];
    long long began = now(), longest = 0;
    for (long said = 0; said < lines; said += AT_ONCE) {
        long long left = began + said * 1000000000LL / rate - now();
        if (left > 0) nanosleep(&(struct timespec){left / 1000000000LL, left % 1000000000LL}, NULL);
        size_t size = 0;
        for (int line = 0; line < AT_ONCE; line++)
            size += sprintf(text + size, "INFO 11-24 02:50:43 [loggers.py:259] line %07ld: generation throughput: "
                            "1843.2 tokens/s, running: 64 reqs\n", said + line);
        long long before = now();
        for (size_t written = 0; written < size;) {
            ssize_t part = write(1, text + written, size - written);
            if (part < 0) return 1;
            written += part;
        }
        if (now() - before > longest) longest = now() - before;
    }
    char took[96];
    snprintf(took, sizeof took, "%.6f %.6f\n", (now() - began) / 1e9, longest / 1e9);
    say(report, took);
    stay();
    return 0;
}

static int zombies(int count) {
    if (!fork()) {
        for (int number = 0; number < count; number++)
            if (!fork()) _exit(0);
        stay();
    }
    signal(SIGCHLD, SIG_IGN);
    stay();
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "serve")) return serve(atoi(words[2]), words[3]);
    if (count == 5 && !strcmp(words[1], "flood")) return flood(atol(words[2]), atol(words[3]), words[4]);
    if (count == 3 && !strcmp(words[1], "zombies")) return zombies(atoi(words[2]));
    return 2;
}
