package ca

import (
	"fmt"
	"testing"
	"time"
)

func TestTallyNeverCountsTooLow(t *testing.T) {
	var c tally
	now := time.Unix(1e9, 0)
	for i := range int64(300) {
		if got := c.add("alice", "a.example", time.Hour, now.Add(time.Duration(i)*time.Second)); got < i+1 {
			t.Fatalf("%d were counted after %d", got, i+1)
		}
	}
	for i := range 50_000 {
		c.add("bob", fmt.Sprint(i), time.Hour, now.Add(time.Minute))
	}
	if got := c.add("alice", "a.example", time.Hour, now.Add(61*time.Minute)); got < 301 {
		t.Fatalf("the window moved on, and %d of 301 are counted", got)
	}
	if got := c.add("alice", "b.example", time.Hour, now.Add(62*time.Minute)); got > 10 {
		t.Errorf("what was never asked for is counted %d times among 50,000 names", got)
	}
	if got := c.add("alice", "a.example", time.Hour, now.Add(200*time.Minute)); got > 10 {
		t.Errorf("after three windows %d are counted", got)
	}
}

func TestTallyDoesNotWrapRound(t *testing.T) {
	var c tally
	for range 70_000 {
		c.add("alice", "a.example", time.Hour, time.Unix(1e9, 0))
	}
	if got := c.add("alice", "a.example", time.Hour, time.Unix(1e9, 0)); got < 1<<16-1 {
		t.Errorf("%d are counted after 70,000", got)
	}
}
