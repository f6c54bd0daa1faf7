package netspace

import "net"

// Echo sends back every datagram that comes to addr ("10.0.0.2:0") in a namespace. It returns where that is, and what ends it.
func Echo(in *Space, addr string) (at string, stop func(), err error) {
	var l net.PacketConn
	in.Do(func() { l, err = net.ListenPacket("udp", addr) })
	if err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 65536)
		for {
			n, from, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(b[:n], from)
		}
	}()
	return l.LocalAddr().String(), func() { l.Close(); <-ended }, nil
}
