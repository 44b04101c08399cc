// Package a has each way to end a goroutine, and ways that look like one.
package a

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"helper"
)

func bad(t *testing.T, f *helper.Fixture) { // want bad:"ends by Fatal"
	if t.Failed() {
		t.Fatal()
	}
	go func() { t.Fatal() }()                // want "not the test's"
	go func() { t.Skipf("x") }()             // want "not the test's"
	go func() { helper.Must(t, nil) }()      // want "Must: Fatal"
	go helper.Must(t, nil)                   // want "Must: Fatal"
	go func() { defer f.Do() }()             // want "Do: again: FailNow"
	go f.Do()                                // want "Do: again: FailNow"
	go func() { func() { t.FailNow() }() }() // want "not the test's"
	local := func() { helper.Must(t, nil) }
	go local()              // want "Must: Fatal"
	go func() { local() }() // want "Must: Fatal"
	var w sync.WaitGroup
	w.Go(func() { t.Fatalf("x") }) // want "not the test's"
	w.Go(local)                    // want "Must: Fatal"
	time.AfterFunc(1, func() {
		each(func() { t.Fatal() }) // want "not the test's"
	})
	http.HandleFunc("/", func(http.ResponseWriter, *http.Request) {
		t.Fatal() // want "not the test's"
	})
}

func good(t *testing.T) {
	go func() {
		helper.Harmless(t, nil)
		helper.Run(t)
		t.Errorf("x")
	}()
	go t.Run("x", func(t *testing.T) { t.Fatal() })
	var w sync.WaitGroup
	w.Go(func() {
		t.Run("x", func(t *testing.T) { t.Fatal() })
	})
	helper.Harmless(t, nil)
	each(func() { t.Fatal() })
}

func each(f func()) { f() }
