# Tells what a clone of a snapshot must not share with others, and what it
# found. It is the first command in its VM.
import json, os, struct, sys, time, uuid


def text(path):
    with open(path) as f:
        return f.read().strip()


def at_random():
    "The 16 bytes that the kernel gave this process for its own secrets."
    with open("/proc/self/auxv", "rb") as f:
        where = dict(struct.iter_unpack("QQ", f.read()))[25]
    with open("/proc/self/mem", "rb", 0) as f:
        f.seek(where)
        return hex(where), f.read(16).hex()


boot_id = text("/proc/sys/kernel/random/boot_id")
found = [d + "/" + name for d in ("/tmp", "/run", "/dev/shm", ".") for name in os.listdir(d)]
for d in ("/tmp", "/dev/shm", "."):
    with open(d + "/mine", "w") as f:
        f.write(boot_id)
with open("/dev/urandom", "rb") as f:
    urandom = f.read(16).hex()
stack, secret = at_random()
json.dump({
    "own": {
        "boot_id": boot_id,
        "hostname": os.uname().nodename,
        "/etc/hostname": text("/etc/hostname"),
        "machine-id": text("/etc/machine-id"),
        "getrandom": os.getrandom(16).hex(),
        "urandom": urandom,
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "hash": hash("tartarus"),
        "AT_RANDOM": secret,
        "stack": stack,
        "heap": hex(id(found)),
    },
    "found": found,
    "kept": [text(d + "/mine") for d in ("/tmp", "/dev/shm", ".")] == 3 * [boot_id],
    "rng": text("/sys/class/misc/hw_random/rng_current"),
    "clocksource": text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    "pid": os.getpid(),
    "uptime": time.monotonic(),
    "clock": time.time(),
}, sys.stdout)
