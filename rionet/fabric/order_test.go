package fabric

import (
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestBehind: what is behind a refused message is refused, in each mailbox by itself, until one is the first again.
func TestBehind(t *testing.T) {
	for _, more := range []string{"", ", delay: 100us"} {
		_, ports := starred(t, 2, more)
		in, other := ports[1].inbox(2), ports[1]
		otherBox, err := other.OpenInbox(1, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer otherBox.Close()
		out := ports[0].outbox(32)
		send := func(what string, mbox uint8, o rapidio.Order, text string, want ...rapidio.Status) {
			t.Helper()
			var msgs []rapidio.Message
			for i := range text {
				msgs = append(msgs, rapidio.Message{Peer: 1, Mbox: mbox, Order: o, Data: []byte(text[i : i+1])})
				if o == rapidio.Again {
					o = rapidio.Behind
				}
			}
			out.Add(msgs)
			for i := range want {
				if st := result1(t, out); st != want[i] {
					t.Errorf("%q, %s: %q: %v, want %v", more, what, text[i:i+1], st, want[i])
				}
			}
		}
		take := func(want string) {
			t.Helper()
			for i := range want {
				if _, data := receive(t, in); string(data) != want[i:i+1] {
					t.Errorf("%q: received %q, want %q", more, data, want[i:i+1])
				}
			}
		}
		const done, retry = rapidio.Done, rapidio.Retry
		send("to a mailbox of two", 0, rapidio.Behind, "abcd", done, done, retry, retry)
		take("ab")
		send("with room", 0, rapidio.Behind, "x", retry)
		send("to another mailbox", 1, rapidio.Behind, "y", done)
		send("alone", 0, rapidio.Alone, "z", done)
		take("z")
		send("again", 0, rapidio.Again, "cde", done, done, retry)
		take("cd")
		send("again", 0, rapidio.Again, "e", done)
		send("after that", 0, rapidio.Behind, "f", done)
		take("ef")
	}
}
