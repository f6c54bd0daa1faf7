#!/usr/bin/env python3
"""A driver for QEMU's educational device in plain Python, over vfio-user.

    ring3 serve sim:edu --socket edu.sock &        # or qemu:edu
    python3 examples/edu.py edu.sock

docs/vfio-user.md explains the messages."""
import fcntl, json, mmap, os, socket, struct, sys

VERSION, DMA_MAP, SET_IRQS, READ, WRITE = 1, 2, 8, 9, 10  # commands
BAR0, CONFIG = 0, 7  # regions
ID, FACT, STATUS, IRQ, ACK, SRC, DST, COUNT, CMD = 0x00, 0x08, 0x20, 0x24, 0x64, 0x80, 0x88, 0x90, 0x98
BUFFER, MEMORY = 0x40000, 0x100000  # the device's buffer; where it finds our memory

sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])


def receive(n):
    return sock.recv(n, socket.MSG_WAITALL) if n else b""


def ask(command, body=b"", fds=()):
    socket.send_fds(sock, [struct.pack("<HHIII", 1, command, 16 + len(body), 0, 0) + body], fds)
    _, _, size, flags, errno = struct.unpack("<HHIII", receive(16))
    reply = receive(size - 16)
    if flags & 1 << 5:
        raise OSError(errno, os.strerror(errno))
    return reply


def read(off, region=BAR0):
    return struct.unpack("<I", ask(READ, struct.pack("<QII", off, region, 4))[16:])[0]


def write(off, value, region=BAR0):
    ask(WRITE, struct.pack("<QIII", off, region, 4, value))


def transfer(src, dst, n, command):
    for reg, value in (SRC, src), (DST, dst), (COUNT, n), (CMD, command | 1 << 2 | 1):  # with an interrupt
        write(reg, value)
    os.eventfd_read(irq)
    write(ACK, read(IRQ))


ask(VERSION, struct.pack("<HH", 0, 0) + json.dumps({"capabilities": {"max_msg_fds": 1}}).encode() + b"\0")
print(f"edu, version {read(ID):#x}")
irq = os.eventfd(0)  # the device's MSI, a trigger by eventfd
ask(SET_IRQS, struct.pack("<IIIII", 20, 1 << 2 | 1 << 5, 1, 0, 1), [irq])
memory = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
os.ftruncate(memory, 4096)
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # then the server may map it
ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, MEMORY, 4096), [memory])
write(0x04, read(0x04, CONFIG) & 0xFFFF | 1 << 2, CONFIG)  # Command: bus master

write(STATUS, 1 << 7)  # an interrupt when computed
write(FACT, 10)
os.eventfd_read(irq)
write(ACK, read(IRQ))
print(f"10! = {read(FACT)}")

page = mmap.mmap(memory, 4096)
page[:13] = b"hello, device"
transfer(MEMORY, BUFFER, 13, 0)
transfer(BUFFER, MEMORY + 2048, 13, 1 << 1)
print(f"through its buffer: {page[2048:2061].decode()}")
