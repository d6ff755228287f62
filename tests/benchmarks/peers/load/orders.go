package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// Who is the first line that a host reads: which of the hosts it is.
type Who struct {
	Replica uint64            `json:"replica"`
	Members map[uint64]string `json:"members"`
	DataDir string            `json:"data_dir"`
	Client  string            `json:"client"`
	Options Options           `json:"options"`
}

// Options are what a row asks for.
type Options struct {
	// Shards is how many there are: 0 is one.
	Shards uint64 `json:"shards"`
}

// Host is one host of a benchmark's cluster.
type Host interface {
	Target
	Leads() bool
	Stop()
}

type order struct {
	Do     string  `json:"do"`
	Load   Load    `json:"load"`
	Within float64 `json:"within"`
}

type answer = map[string]any

// Serve starts a host and obeys the benchmark's orders, which `tests/benchmarks/host.py` describes, until it is told to
// stop or the orders end.
func Serve(start func(Who) (Host, error)) {
	if err := serve(start, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(start func(Who) (Host, error), input io.Reader, output io.Writer) error {
	orders, answers := json.NewDecoder(bufio.NewReader(input)), json.NewEncoder(output)
	var who Who
	if err := orders.Decode(&who); err != nil {
		return fmt.Errorf("the first line must say which host this is: %w", err)
	}
	host, err := start(who)
	if err != nil {
		return err
	}
	defer host.Stop()
	if err := answers.Encode(answer{"started": true}); err != nil {
		return err
	}
	for {
		var next order
		if err := orders.Decode(&next); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("not an order: %w", err)
		}
		if err := answers.Encode(obey(host, next)); err != nil || next.Do == "stop" {
			return err
		}
	}
}

func obey(host Host, next order) answer {
	switch next.Do {
	case "leads":
		return answer{"leads": host.Leads()}
	case "run":
		figures, err := Run(host, next.Load)
		if err != nil {
			return answer{"error": err.Error()}
		}
		return answer{"figures": figures}
	case "recover":
		if err := Recover(host, seconds(next.Within)); err != nil {
			return answer{"error": err.Error()}
		}
		return answer{"recovered": true}
	case "stop":
		return answer{"profile": ""}
	default:
		return answer{"error": fmt.Sprintf("no such order: %q", next.Do)}
	}
}
