// What Go's concurrency.Mutex does in the situations of the benchmark: one situation for each run, the figures as one
// line of JSON on standard output.
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
	clients  = flag.Bool("clients", false, "a client and a session for each goroutine, as in processes of their own")
	sessions = flag.Bool("sessions", false, "one client, but a session for each goroutine: a session has a name only once")
	shared   = flag.Bool("shared", false, "one name for all goroutines")
	names    = flag.Int("names", 1, "names that each goroutine takes in turn")
	warmUp   = flag.Duration("warm-up", time.Second, "not measured")
	measured = flag.Duration("measured", time.Second, "measured")
)

// figures is what the benchmark reads.
type figures struct {
	Cycles  []uint64 `json:"cycles"`  // by goroutine, within the measured time
	Seconds float64  `json:"seconds"` // measured
	Nanos   []int64  `json:"nanos"`   // one name: from release to the next grant; names of their own: of each Lock
}

// relay measures from one goroutine's release to the next one's grant. Only the holder touches it.
type relay struct {
	sync.Mutex
	from     int
	released time.Time
}

func (r *relay) releasing(worker int) {
	r.Lock()
	r.from, r.released = worker, time.Now()
	r.Unlock()
}

// granted returns -1 if the lock did not change hands.
func (r *relay) granted(worker int) int64 {
	r.Lock()
	defer r.Unlock()
	if r.released.IsZero() || r.from == worker {
		return -1
	}
	return time.Since(r.released).Nanoseconds()
}

type worker struct {
	number  int
	session *session
	mutexes []*mutex
	cycles  uint64
	nanos   []int64
}

func (w *worker) run(relay *relay, from, until time.Time) {
	ctx := context.Background()
	for n := 0; time.Now().Before(until); n++ {
		mutex := w.mutexes[n%len(w.mutexes)]
		start := time.Now()
		check(mutex.Lock(ctx))
		nanos := time.Since(start).Nanoseconds()
		if *shared {
			nanos = relay.granted(w.number)
			relay.releasing(w.number)
		}
		check(mutex.Unlock(ctx))
		if now := time.Now(); now.After(from) && now.Before(until) {
			w.cycles++
			if nanos >= 0 {
				w.nanos = append(w.nanos, nanos)
			}
		}
	}
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	all := prepare()
	from := time.Now().Add(*warmUp)
	until := from.Add(*measured)
	var relay relay
	var running sync.WaitGroup
	for _, w := range all {
		running.Add(1)
		go func(w *worker) {
			defer running.Done()
			w.run(&relay, from, until)
		}(w)
	}
	running.Wait()
	out := figures{Seconds: measured.Seconds()}
	for _, w := range all {
		out.Cycles = append(out.Cycles, w.cycles)
		out.Nanos = append(out.Nanos, w.nanos...)
	}
	check(json.NewEncoder(os.Stdout).Encode(out))
	for _, w := range all {
		w.session.Close() // once for each session; closing again is refused, which is fine
	}
}

func prepare() []*worker {
	var all []*worker
	var c *client
	var s *session
	for n := 0; n < *workers; n++ {
		if c == nil || *clients {
			c = connect(*endpoint)
		}
		if s == nil || *clients || *sessions {
			var err error
			s, err = newSession(c)
			check(err)
		}
		w := &worker{number: n, session: s}
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
