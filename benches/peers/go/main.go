// What Go's concurrency.Mutex does in the situations of the benchmark: one process of one situation for each run. It says
// "ready", reads from when until when to measure, and prints what it measured as one line of JSON.
//
// Built by the benchmark itself, against Debian's golang-etcd-server-dev:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -tags etcd34 -o peers-go .
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"time"
)

var (
	endpoint = flag.String("endpoint", "", "where etcd is")
	prefix   = flag.String("prefix", "", "of all names")
	workers  = flag.Int("workers", 1, "goroutines, each in a loop of lock and unlock")
	shared   = flag.Bool("shared", false, "one name for all goroutines, a session for each: a session has a name only once")
	names    = flag.Int("names", 1, "names that each goroutine takes in turn")
)

// turn is when a worker asked, when it was granted, and when it let go: nanoseconds from the window's beginning.
type turn [3]int64

// window is the measured time; workers run before it, and finish their last cycle after it.
type window struct {
	from, until time.Time
}

// agreed tells whoever started this process that it is ready, and is told the window.
func agreed() window {
	fmt.Println("ready")
	var from, until int64
	_, err := fmt.Scan(&from, &until)
	check(err)
	return window{time.Unix(0, from), time.Unix(0, until)}
}

func (w window) now() int64 {
	return time.Since(w.from).Nanoseconds()
}

type worker struct {
	session *session
	mutexes []*mutex
	turns   []turn
}

func (w *worker) run(window window) {
	ctx := context.Background()
	for n := 0; time.Now().Before(window.until); n++ {
		mutex := w.mutexes[n%len(w.mutexes)]
		asked := window.now()
		check(mutex.Lock(ctx))
		granted := window.now()
		releasing := window.now()
		check(mutex.Unlock(ctx))
		if now := time.Now(); now.After(window.from) && now.Before(window.until) {
			w.turns = append(w.turns, turn{asked, granted, releasing})
		}
	}
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	all := prepare()
	window := agreed()
	var running sync.WaitGroup
	for _, w := range all {
		running.Add(1)
		go func(w *worker) {
			defer running.Done()
			w.run(window)
		}(w)
	}
	running.Wait()
	turns := make([][]turn, 0)
	for _, w := range all {
		turns = append(turns, append([]turn{}, w.turns...))
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string][][]turn{"turns": turns}))
	for _, w := range all {
		w.session.Close() // once for each session; closing again is refused, which is fine
	}
}

func prepare() []*worker {
	var all []*worker
	c := connect(*endpoint)
	var s *session
	for n := 0; n < *workers; n++ {
		if s == nil || *shared {
			var err error
			s, err = newSession(c)
			check(err)
		}
		w := &worker{session: s}
		for name := 0; name < *names; name++ {
			key := fmt.Sprintf("%s/%d-%d", *prefix, n, name)
			if *shared {
				key = *prefix + "/shared"
			}
			w.mutexes = append(w.mutexes, newMutex(s, key))
		}
		all = append(all, w)
	}
	return all
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
