//! Real servers with a client that stays connected, both in one tree: redis, nginx with workers,
//! node, python's asyncio, postgres, and curl in the middle of a download. Each is dumped (which
//! kills it), restored, and must answer on the connections it had; and the same left running.
//!
//! The root of each tree is a python that starts the server, connects, says `ready`, and on SIGTERM
//! goes on with the very connections, makes new ones, ends the server and gives its verdict.

use anyhow::Result;
use crust_tests::{proc_snapshot, sandbox::Sandbox, sandbox_test};
use std::{fs, path::Path, process::Command};

/// How a program is taken through a dump.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    KilledAndRestored,
    LeftRunning,
}

/// What every script begins with.
const COMMON: &str = r#"
import hashlib, http.client, os, signal, socket, subprocess, sys, time
asked = False
def ask(*_):
    global asked
    asked = True
signal.signal(signal.SIGTERM, ask)
def connect(port, kind=socket.AF_INET):
    # A server that has just been started listens soon.
    while True:
        try:
            client = socket.socket(kind)
            client.connect(port if kind == socket.AF_UNIX else ("127.0.0.1", port))
            return client
        except (ConnectionRefusedError, FileNotFoundError):
            client.close()
            time.sleep(0.01)
def wait():
    print("ready", flush=True)
    while not asked:
        signal.pause()
def expect(got, wanted):
    if got != wanted:
        print("FAIL: got %r, not %r" % (got, wanted), flush=True)
        end(1)
servers = []
def serve(*command, **more):
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=open("server.log", "a"),
                              stderr=subprocess.STDOUT, **more)
    servers.append(server)
    return server
def end(status):
    for server in servers:
        server.terminate()
        server.wait()
    if status == 0:
        print("ok", flush=True)
    os._exit(status)
"#;

const REDIS: &str = r#"
serve("redis-server", "--port", "7001", "--save", "", "--appendonly", "no")
client = connect(7001)
lines = client.makefile("rwb")
def ask_redis(lines, command):
    lines.write(command.encode() + b"\r\n")
    lines.flush()
    answer = lines.readline().strip()
    return lines.readline().strip() if answer[:1] == b"$" else answer
expect(ask_redis(lines, "SET key before"), b"+OK")
expect(ask_redis(lines, "CLIENT SETNAME kept"), b"+OK")
wait()
expect(ask_redis(lines, "GET key"), b"before")
expect(ask_redis(lines, "CLIENT GETNAME"), b"kept")
more = connect(7001).makefile("rwb")
expect(ask_redis(more, "SET key after"), b"+OK")
expect(ask_redis(lines, "GET key"), b"after")
end(0)
"#;

const HTTP_CLIENT: &str = r#"
kept = http.client.HTTPConnection("127.0.0.1", PORT)
def get(client, path):
    client.request("GET", path)
    return client.getresponse().read()
connect(PORT).close()
kept.connect()
first = kept.sock.getsockname()
expect(get(kept, "/hello"), b"hello")
wait()
expect(get(kept, "/hello"), b"hello")
expect(kept.sock.getsockname(), first)
for _ in range(20):
    expect(get(http.client.HTTPConnection("127.0.0.1", PORT), "/hello"), b"hello")
end(0)
"#;

const NGINX: &str = r#"
PORT = 7002
os.makedirs("www", exist_ok=True)
open("www/hello", "w").write("hello")
open("nginx.conf", "w").write("""
daemon off; worker_processes 2; pid %(here)s/pid; error_log %(here)s/error.log;
events { worker_connections 64; }
http { access_log off; keepalive_timeout 3600;
    client_body_temp_path %(here)s/a; proxy_temp_path %(here)s/b; fastcgi_temp_path %(here)s/c;
    uwsgi_temp_path %(here)s/d; scgi_temp_path %(here)s/e;
    server { listen 127.0.0.1:7002; root %(here)s/www; } }
""" % {"here": os.getcwd()})
os.chmod(os.getcwd(), 0o755)
serve("nginx", "-c", os.getcwd() + "/nginx.conf", "-p", os.getcwd())
"#;

const NODE: &str = r#"
PORT = 7003
serve("node", "-e", """
const server = require('http').createServer((request, answer) => answer.end('hello'));
server.keepAliveTimeout = 3600000;
server.listen(7003, '127.0.0.1');
""")
"#;

const ASYNCIO: &str = r#"
SERVER = """
import asyncio
async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()
async def main():
    tcp = await asyncio.start_server(answer, '127.0.0.1', 7004)
    unix = await asyncio.start_unix_server(answer, 'asyncio.sock')
    ticks = asyncio.create_task(asyncio.sleep(3600))
    async with tcp, unix:
        await asyncio.gather(tcp.serve_forever(), unix.serve_forever())
asyncio.run(main())
"""
serve(sys.executable, "-c", SERVER)
there = os.path.abspath("asyncio.sock")
clients = [connect(7004).makefile("rwb"), connect(there, socket.AF_UNIX).makefile("rwb")]
def shout(client, line):
    client.write(line)
    client.flush()
    return client.readline()
for client in clients:
    expect(shout(client, b"before\n"), b"BEFORE\n")
wait()
for client in clients + [connect(7004).makefile("rwb"), connect(there, socket.AF_UNIX).makefile("rwb")]:
    expect(shout(client, b"after\n"), b"AFTER\n")
end(0)
"#;

/// The file is larger than all buffers between the two, and curl takes it slowly: at the time of the
/// dump both ends hold bytes that the other has not got.
const CURL: &str = r#"
SERVER = """
import http.server
class Serve(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = open('data', 'rb').read()
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(('127.0.0.1', 7005), Serve).serve_forever()
"""
data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(1 << 19))
open("data", "wb").write(data)
serve(sys.executable, "-c", SERVER)
connect(7005).close()
curl = subprocess.Popen(["curl", "--silent", "--show-error", "--limit-rate", "6M", "-o", "got",
                         "http://127.0.0.1:7005/data"])
while not os.path.exists("got") or os.path.getsize("got") < 1 << 20:
    time.sleep(0.005)
expect(curl.poll(), None)
wait()
expect(curl.wait(), 0)
expect(hashlib.sha256(open("got", "rb").read()).hexdigest(), hashlib.sha256(data).hexdigest())
end(0)
"#;

const POSTGRES: &str = r#"
import pwd
user = pwd.getpwnam("postgres")
os.chmod(os.getcwd(), 0o777)
here = os.path.join(os.getcwd(), "postgres")
def demote():
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
os.makedirs(here, exist_ok=True)
os.chown(here, user.pw_uid, user.pw_gid)
bin = os.path.dirname(os.path.realpath("/usr/local/bin/postgres"))
if not os.path.exists(bin + "/initdb"):
    bin = max("/usr/lib/postgresql/%s/bin" % version for version in os.listdir("/usr/lib/postgresql"))
subprocess.run([bin + "/initdb", "-D", here, "--auth=trust", "--no-sync"], preexec_fn=demote, cwd="/",
               check=True, stdout=open("initdb.log", "w"))
serve(bin + "/postgres", "-D", here, "-p", "7006", "-k", here, "-c", "fsync=off",
      "-c", "shared_memory_type=mmap", "-c", "dynamic_shared_memory_type=mmap", preexec_fn=demote, cwd="/")
connect(7006).close()
def open_psql():
    return subprocess.Popen(["psql", "-h", "127.0.0.1", "-p", "7006", "-U", "postgres", "-qAt", "postgres"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def query(psql, text):
    psql.stdin.write(text.encode() + b"\n")
    psql.stdin.flush()
    return psql.stdout.readline().strip()
while True:
    psql = open_psql()
    if query(psql, "select 1;") == b"1":
        break
    psql.wait()
    time.sleep(0.05)
expect(query(psql, "create temp table t (n int); insert into t select generate_series(1, 1000); select count(*) from t;"), b"1000")
expect(query(psql, "begin; insert into t values (1001); select max(n) from t;"), b"1001")
backend = query(psql, "select pg_backend_pid();")
wait()
expect(query(psql, "select pg_backend_pid();"), backend)
expect(query(psql, "rollback; select max(n) from t;"), b"1000")
other = open_psql()
expect(query(other, "create table kept (n int); insert into kept values (7); select n from kept;"), b"7")
expect(query(psql, "select n from kept;"), b"7")
for client in (psql, other):
    client.stdin.close()
    client.wait()
end(0)
"#;

/// True, with a note, if a program of the test is missing.
fn missing(programs: &[&str]) -> bool {
    let is_missing = |program: &&&str| Command::new(program).arg("--version").output().is_err();
    let found = programs.iter().find(is_missing);
    if let Some(program) = found {
        println!("SKIPPED: {program} is not installed");
    }
    found.is_some()
}

fn through_a_dump(sandbox: &Sandbox, way: Way, programs: &[&str], script: &[&str]) -> Result<()> {
    if missing(&["python3"]) || missing(programs) {
        return Ok(());
    }
    let scratch = sandbox.dir("network")?;
    // For servers that give up root.
    for dir in scratch
        .ancestors()
        .take_while(|dir| *dir != Path::new("/tmp"))
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, mode)?;
    }
    let mut command = Command::new("python3");
    let script = [&[COMMON], script].concat().concat();
    command.args(["-c", &script]).current_dir(&scratch);
    let guest = sandbox.spawn("python3", &command, &scratch)?;
    guest.wait_for_line(sandbox, "ready")?;
    proc_snapshot::settle(guest.pid)?;
    let images = sandbox.images("network")?;
    let established = "--tcp-established";
    let options = ["--leave-running", established];
    match way {
        Way::KilledAndRestored => {
            sandbox.dump_and_kill(&guest, &images, &[established])?;
            sandbox.restore(&images, &[established])?.succeeded()?;
        }
        Way::LeftRunning => {
            sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
        }
    }
    guest.expect_ok(sandbox)
}

macro_rules! servers {
    ($($name:ident: $programs:expr, $script:expr;)*) => {$(
        mod $name {
            use super::*;
            sandbox_test! {
                fn restored(sandbox) {
                    through_a_dump(sandbox, Way::KilledAndRestored, &$programs, &$script)
                }
                fn left_running(sandbox) {
                    through_a_dump(sandbox, Way::LeftRunning, &$programs, &$script)
                }
            }
        }
    )*};
}

servers! {
    redis: ["redis-server"], [REDIS];
    nginx: ["nginx"], [NGINX, HTTP_CLIENT];
    node: ["node"], [NODE, HTTP_CLIENT];
    asyncio: [], [ASYNCIO];
    curl: ["curl"], [CURL];
    postgres: ["psql"], [POSTGRES];
}
