package netdev

import "strconv"

func itoa(n int) string    { return strconv.Itoa(n) }
func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
func hex(n uint64) string  { return "0x" + strconv.FormatUint(n, 16) }
