package load

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fake fails every second command, or all of them.
type fake struct {
	alwaysFails bool
	calls       atomic.Int64
}

func (f *fake) Propose(context.Context, int, [][]byte) error {
	if n := f.calls.Add(1); f.alwaysFails || n%2 == 0 {
		return errors.New("too busy")
	}
	time.Sleep(time.Millisecond)
	return nil
}

func (f *fake) Read(context.Context, int) error { return nil }
func (f *fake) Leads() bool                     { return true }
func (f *fake) Stop()                           {}

func TestErrorsAreCounted(t *testing.T) {
	figures, err := Run(&fake{}, Load{InFlight: 10, Seconds: 0.2, Batch: 10, Size: 16, Moments: true})
	if err != nil {
		t.Fatal(err)
	}
	if figures.Errors == 0 || figures.LastError != "too busy" {
		t.Errorf("errors: %d, %q", figures.Errors, figures.LastError)
	}
	if figures.Commits == 0 || figures.Commits != 10*len(figures.Moments) || figures.Commits > figures.Answered {
		t.Errorf("%d commits of %d, %d moments", figures.Commits, figures.Answered, len(figures.Moments))
	}
	// A millisecond for the try that fails and rests, and one for the try that does not: both are the command's.
	if first := figures.Moments[0]; first[1]-first[0] < 0.002 {
		t.Errorf("answered sooner than it can be: %v", first)
	}
}

func TestNothingCommits(t *testing.T) {
	load := Load{InFlight: 1, Seconds: 0.05, Batch: 1, Size: 16}
	if _, err := Run(&fake{alwaysFails: true}, load); err == nil || !strings.Contains(err.Error(), "too busy") {
		t.Errorf("the error is %v", err)
	}
	if err := Recover(&fake{alwaysFails: true}, 30*time.Millisecond); err == nil {
		t.Error("recovered, although nothing commits")
	}
}

func TestOrders(t *testing.T) {
	orders := `{"replica": 2, "members": {"1": "a:1", "2": "a:2"}, "data_dir": "d"}
		{"do": "leads"} {"do": "recover", "within": 1} {"do": "dance"} {"do": "stop"} {"do": "leads"}`
	var answers strings.Builder
	start := func(who Who) (Host, error) {
		if who.Replica != 2 || who.Members[1] != "a:1" || who.DataDir != "d" {
			t.Errorf("started as %v", who)
		}
		return &fake{}, nil
	}
	if err := serve(start, strings.NewReader(orders), &answers); err != nil {
		t.Fatal(err)
	}
	expected := `{"started":true}|{"leads":true}|{"recovered":true}|{"error":"no such order: \"dance\""}|{"profile":""}|`
	if got := strings.ReplaceAll(answers.String(), "\n", "|"); got != expected {
		t.Errorf("answered %s", got)
	}
}
