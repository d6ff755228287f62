// Package load puts the load of Drakkar's benchmark on a system that is written in Go, and takes the benchmark's orders.
package load

import (
	"context"
	"fmt"
	"math/rand"
	"sort"
	"sync"
	"time"
)

const (
	answersWithin  = 5 * time.Second
	restAfterError = time.Millisecond
)

// Target is a replica of any system, or a connection to one, as the load sees it.
type Target interface {
	// Propose has commands committed and applied, together if there are several. Clients are numbered from 0.
	Propose(ctx context.Context, client int, commands [][]byte) error
	// Read asks the state machine, linearizably.
	Read(ctx context.Context, client int) error
}

// Load is what to do to a target. `tests/benchmarks/load.py` says what the fields mean.
type Load struct {
	InFlight int     `json:"in_flight"`
	Seconds  float64 `json:"seconds"`
	Batch    int     `json:"batch"`
	Size     int     `json:"size"`
	Read     bool    `json:"read"`
	Moments  bool    `json:"moments"`
}

// Figures is what came of it. Times are milliseconds, moments are seconds of the system's clock.
type Figures struct {
	Commits   int          `json:"commits"`
	Seconds   float64      `json:"seconds"`
	P50       float64      `json:"p50"`
	P99       float64      `json:"p99"`
	Worst     float64      `json:"worst"`
	Answered  int          `json:"answered"`
	Errors    int          `json:"errors"`
	LastError string       `json:"last_error"`
	Moments   [][2]float64 `json:"moments"`
}

// Run keeps the load's commands outstanding, each client's replaced as soon as it is answered. A command that fails is
// counted, and tried again. It is an error if nothing is answered in the time that is measured.
func Run(target Target, load Load) (Figures, error) {
	if load.Batch < 1 || load.InFlight < load.Batch {
		return Figures{}, fmt.Errorf("%d commands in lists of %d cannot be in flight", load.InFlight, load.Batch)
	}
	measured := time.Now().Add(seconds(load.Seconds / 5))
	end := measured.Add(seconds(load.Seconds))
	clients := make([]client, load.InFlight/load.Batch)
	var running sync.WaitGroup
	for i := range clients {
		running.Add(1)
		go func() {
			defer running.Done()
			clients[i].run(load.operation(target, i), load.Moments, measured, end)
		}()
	}
	running.Wait()
	return sum(clients, load)
}

func (load Load) operation(target Target, client int) func(context.Context) error {
	if load.Read {
		return func(ctx context.Context) error { return target.Read(ctx, client) }
	}
	commands := make([][]byte, load.Batch)
	for i := range commands {
		commands[i] = command(load.Size)
	}
	return func(ctx context.Context) error { return target.Propose(ctx, client, commands) }
}

// command makes bytes that no compression makes smaller.
func command(size int) []byte {
	bytes := make([]byte, size)
	rand.New(rand.NewSource(0)).Read(bytes)
	return bytes
}

// client has one answer outstanding at any time.
type client struct {
	times    []float64
	moments  [][2]float64
	answered int
	errors   int
	last     error
}

func (c *client) run(operation func(context.Context) error, moments bool, measured, end time.Time) {
	began := time.Now()
	for time.Now().Before(end) {
		ctx, cancel := context.WithTimeout(context.Background(), answersWithin)
		err := operation(ctx)
		cancel()
		if err != nil {
			// Tried again, and its time goes on: a client that is refused waits no less than one that is queued.
			c.errors, c.last = c.errors+1, err
			time.Sleep(restAfterError)
			continue
		}
		first, now := began, time.Now()
		began = now
		c.answered++
		if now.Before(measured) || now.After(end) {
			continue
		}
		c.times = append(c.times, now.Sub(first).Seconds()*1000)
		if moments {
			c.moments = append(c.moments, [2]float64{unix(first), unix(now)})
		}
	}
}

func sum(clients []client, load Load) (Figures, error) {
	figures := Figures{Seconds: load.Seconds}
	var times []float64
	for _, each := range clients {
		times = append(times, each.times...)
		figures.Moments = append(figures.Moments, each.moments...)
		figures.Answered += each.answered * load.Batch
		figures.Errors += each.errors
		if each.last != nil {
			figures.LastError = each.last.Error()
		}
	}
	if len(times) == 0 {
		return figures, fmt.Errorf("nothing was answered within %.1f s, and %d times an error came, at last: %s",
			load.Seconds, figures.Errors, figures.LastError)
	}
	sort.Float64s(times)
	figures.Commits = len(times) * load.Batch
	figures.P50, figures.P99, figures.Worst = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	return figures, nil
}

func seconds(count float64) time.Duration { return time.Duration(count * float64(time.Second)) }

func unix(moment time.Time) float64 { return float64(moment.UnixNano()) / 1e9 }
