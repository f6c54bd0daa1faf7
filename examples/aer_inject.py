#!/usr/bin/env python3
"""Give a PCI Express function errors, by /dev/aer_inject, as the kernel's module takes them.

    ring3 shell -- examples/aer_inject.py 1000:01:00.0 COMP_TIME
    ring3 shell -- examples/aer_inject.py 1000:01:00.0 BAD_TLP MALF_TLP --header 0 1 2 3

An error is a name, or a bit of the register: uncorrectable 14 is u14, correctable 6 is c6. docs/abi/dev-aer-inject.md
has the record, and the errors of the write.
"""
import argparse
import re
import struct
import sys

UNCORRECTABLE = {
    "DLP": 4, "SDN": 5, "POISON_TLP": 12, "FCP": 13, "COMP_TIME": 14, "COMP_ABORT": 15, "UNX_COMP": 16, "RX_OVER": 17,
    "MALF_TLP": 18, "ECRC": 19, "UNSUP": 20, "ACSV": 21, "INTN": 22, "MCBTLP": 23, "ATOP_EBLOCKED": 24, "TLP_PRF_BLOCKED": 25,
}
CORRECTABLE = {
    "RCVR": 0, "BAD_TLP": 6, "BAD_DLLP": 7, "REP_ROLL": 8, "REP_TIMER": 12, "ADV_NONFATAL": 13, "INTERNAL": 14, "HL_OVERFLOW": 15,
}


def bits(errors):
    """The bits of errors: those of Uncorrectable Error Status, and those of Correctable Error Status."""
    uncorrectable = correctable = 0
    for name in errors:
        if name.upper() in UNCORRECTABLE:
            uncorrectable |= 1 << UNCORRECTABLE[name.upper()]
        elif name.upper() in CORRECTABLE:
            correctable |= 1 << CORRECTABLE[name.upper()]
        elif re.fullmatch("[uc]([12]?[0-9]|3[01])", name):
            if name[0] == "u":
                uncorrectable |= 1 << int(name[1:])
            else:
                correctable |= 1 << int(name[1:])
        else:
            sys.exit(f"{name}: want u0 to u31, c0 to c31, or one of {', '.join([*UNCORRECTABLE, *CORRECTABLE])}")
    return uncorrectable, correctable


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function", help="its address: 1000:01:00.0")
    parser.add_argument("error", nargs="+", help="COMP_TIME, BAD_TLP, ...; or u14, c6")
    parser.add_argument("--header", nargs=4, type=lambda s: int(s, 0), default=(0, 0, 0, 0), metavar="WORD", help="Header Log")
    parser.add_argument("--device", default="/dev/aer_inject")
    args = parser.parse_args()
    address = re.fullmatch("([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})[.]([0-7])", args.function)
    if not address:
        sys.exit(f"{args.function}: want an address, as in 1000:01:00.0")
    domain, bus, device, function = (int(s, 16) for s in address.groups())
    uncorrectable, correctable = bits(args.error)
    header = args.header
    record = struct.pack("=3Bx7I", bus, device, function, uncorrectable, correctable, *header, domain)
    try:
        with open(args.device, "wb", buffering=0) as f:
            f.write(record)
    except OSError as e:
        sys.exit(f"{args.device}: {e.strerror}; 'ring3 dmesg' says more")


main()
