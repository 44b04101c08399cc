package consumer

import (
	"context"
	"errors"
	"strings"
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
