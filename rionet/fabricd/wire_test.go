package fabricd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestParseRequest(t *testing.T) {
	for _, e := range []struct {
		line, want string // want: part of the error; "": none
	}{
		{`{"op":"show"}`, ""},
		{`{"v":1,"op":"watch"}`, ""},
		{`{"op":"link","ends":["pe0","sw0:0"],"up":false}`, ""},
		{`{"join":"pe1","ids":0,"window":65536}`, ""},
		{`{"join":"pe1","ids":16,"window":[4096,8192]}`, ""},
		{`{"join":"pe1"}`, ""},
		{`{"join":"pe1","window":0}`, ""},
		{``, "not understood"},
		{`{}`, `one of "op" and "join"`},
		{`{"op":"show","join":"pe1"}`, `one of "op" and "join"`},
		{`{"op":"shut"}`, `no operation "shut"`},
		{`{"v":2,"op":"show"}`, "version 2"},
		{`{"op":"show","more":1}`, "unknown field"},
		{`{"op":"show"}{"op":"show"}`, "behind its end"},
		{`{"op":"link","ends":["pe0"],"up":false}`, "two names"},
		{`{"op":"link","ends":["pe0","pe1"]}`, `"up"`},
		{`{"join":"pe1","ids":32}`, "ids 32"},
		{`{"join":"pe1","window":4095}`, "window of 4095"},
		{`{"join":"pe1","window":4097}`, "multiple of 4096"},
		{`{"join":"pe1","window":1099511627776}`, "wanted 4096 to 1073741824"},
		{`{"join":"pe1","window":[-4096]}`, "window of -4096"},
		{`{"join":"pe1","window":[4096,4096,4096,4096,4096,4096,4096,4096,4096]}`, "9 windows"},
		{`[1]`, "not understood"},
	} {
		_, err := parseRequest([]byte(e.line))
		if e.want == "" && err != nil || e.want != "" && (err == nil || !strings.Contains(err.Error(), e.want)) {
			t.Errorf("parseRequest(%s) = %v, want %q", e.line, err, e.want)
		}
		if err != nil && strings.ContainsRune(err.Error(), '\n') {
			t.Errorf("parseRequest(%s) = %q, want one line", e.line, err)
		}
	}
}

// FuzzRequest: a request is accepted or refused, and one that is accepted means the same when it is sent again.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"link","ends":["pe0","sw0:0"],"up":false}`))
	f.Add([]byte(`{"join":"pe1","ids":8,"window":[65536]}`))
	f.Add([]byte(`{"v":1,"op":"watch"}`))
	f.Add([]byte(`{"join":"\u0000","window":4096`))
	f.Fuzz(func(t *testing.T, line []byte) {
		q, err := parseRequest(line)
		if err != nil {
			if strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("error of %d lines: %q", strings.Count(err.Error(), "\n")+1, err)
			}
			return
		}
		if q.Window.check() != nil && q.Join != "" {
			t.Errorf("accepted windows %v", q.Window)
		}
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRequest(b)
		if err != nil || again.Op != q.Op || again.Join != q.Join || again.IDs != q.IDs || !slices.Equal(again.Window, q.Window) || !slices.Equal(again.Ends, q.Ends) {
			t.Errorf("%s came back as %s: %+v, %v", line, b, again, err)
		}
	})
}

// FuzzResponse: a client makes an answer or an error of whatever a daemon sends.
func FuzzResponse(f *testing.F) {
	f.Add([]byte(`{"v":1,"ok":true,"ids":8,"peer":2}`))
	f.Add([]byte(`{"v":1,"error":"no","code":"busy"}`))
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`HTTP/1.1 400 Bad Request`))
	f.Fuzz(func(t *testing.T, line []byte) {
		a, err := (&Client{path: "/x"}).parse(line)
		if (err == nil) != (a.V != 0) {
			t.Errorf("parse(%q) = %+v, %v, want one of them", line, a, err)
		}
	})
}

func TestReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("one\n\n"+strings.Repeat("x", 100)+"\n"+strings.Repeat("y", 101)+"\nrest"), 16)
	for _, want := range []string{"one", "", strings.Repeat("x", 100)} {
		if got, err := readLine(r, 100); err != nil || string(got) != want {
			t.Errorf("readLine = %q, %v, want %q", got, err, want)
		}
	}
	if _, err := readLine(r, 100); !errors.Is(err, errTooLong) {
		t.Errorf("readLine of 101 bytes = %v, want %v", err, errTooLong)
	}
	if _, err := readLine(bufio.NewReader(bytes.NewReader([]byte("x"))), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("readLine of half a line = %v, want %v", err, io.ErrUnexpectedEOF)
	}
}
