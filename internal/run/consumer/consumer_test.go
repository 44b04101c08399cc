package consumer

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestStopEndsTheProgram(t *testing.T) {
	p, err := Start(t.Context(), Program{Path: "sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Fatal("Stop returned before the program ended")
	}
	if err := p.Stop(); err != nil {
		t.Fatalf("a second Stop: %v", err)
	}
}

func TestProgramThatEndsIsNotWaitedFor(t *testing.T) {
	_, err := Start(t.Context(), Program{
		Path: "sh", Args: []string{"-c", "echo no such luck >&2; exit 3"},
		Ready: func(context.Context) error { return errors.New("not yet") },
	})
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Fatalf("error %v does not say what the program printed", err)
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	if _, err := Start(t.Context(), Program{Path: "no-such-program"}); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Fatalf("error %v", err)
	}
}

func TestContextEndsTheProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, Program{Path: "sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-p.Done()
}

func TestListeningSeesAPort(t *testing.T) {
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	if err := Listening(address)(t.Context()); err == nil {
		t.Fatalf("%s is free, yet something listens there", address)
	}
	dir := t.TempDir()
	_, port, _ := strings.Cut(address, ":")
	p, err := Start(t.Context(), Program{
		Path: "openssl", Dir: dir, Args: []string{"s_server", "-accept", "127.0.0.1:" + port, "-nocert", "-cipher", "aNULL:@SECLEVEL=0", "-tls1_2"},
		Ready: Listening(address),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAnotherAnswersInItsPlace: a program that finds its address taken is not ready because who has it answers.
func TestAnotherAnswersInItsPlace(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, says := range []string{"it serves", ""} {
		p, err := Start(t.Context(), Program{
			Path: "sh", Args: []string{"-c", "echo the address is taken; exit 1"}, Says: says, Ready: func(ctx context.Context) error {
				if says != "" {
					t.Errorf("it was asked before it said %q", says)
				}
				return Listening(other.Addr().String())(ctx)
			},
		})
		if (err == nil) != (says == "") {
			t.Errorf("a program that is to say %q: %v", says, err)
		}
		if err == nil {
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestFreeAddressesAreOnesOwn: nobody gets an address that another has and does not listen on yet, and no outgoing connection takes one.
func TestFreeAddressesAreOnesOwn(t *testing.T) {
	seen := map[string]bool{}
	for range 300 {
		address, err := FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(strings.TrimPrefix(address, "127.0.0.1:"))
		if err != nil || seen[address] || port < 1024 || port >= 32768 {
			t.Fatalf("%s after %d others: %v", address, len(seen), err)
		}
		seen[address] = true
		if err := reserve(port); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("%s is reserved a second time: %v", address, err)
		}
	}
}
