// Package measure is the measuring of figures beside their floors: what a
// thing costs, next to the least that anything of its kind can cost, taken in
// turn within one run.
//
// Machines differ from day to day, and from minute to minute when others work
// on them; the ratio of two figures that were taken in turn differs least. So
// every row has a floor, is the median of small rounds, and says what is in it.
package measure

import (
	"context"
	"fmt"
	"slices"
)

// Row is one line of a table: a figure, its floor, and what was asked of it.
type Row struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Value    float64 `json:"value"`           // median of the rounds
	Floor    float64 `json:"floor,omitempty"` // median of the rounds; 0 without a floor
	Ratio    float64 `json:"ratio,omitempty"` // median of the rounds' value / floor
	FloorOf  string  `json:"floor_of,omitempty"`
	Includes string  `json:"includes"`
	Goals    []Goal  `json:"goals,omitempty"`
	Met      *bool   `json:"met,omitempty"` // all goals; nil without any
	Rounds   []Pair  `json:"rounds"`
}

// Pair is what one round found.
type Pair struct {
	Value float64 `json:"value"`
	Floor float64 `json:"floor,omitempty"`
}

// Goal is a bound on a row's value or ratio.
type Goal struct {
	Of    string  `json:"of"` // value or ratio
	Least bool    `json:"least"`
	Bound float64 `json:"bound"`
}

// The kinds of goals.
const (
	OfValue = "value"
	OfRatio = "ratio"
)

// AtLeast and AtMost bound the value; RatioAtLeast and RatioAtMost the ratio.
func AtLeast(v float64) Goal { return Goal{OfValue, true, v} }

// AtMost is an upper bound on the value.
func AtMost(v float64) Goal { return Goal{OfValue, false, v} }

// RatioAtLeast is a lower bound on value / floor.
func RatioAtLeast(v float64) Goal { return Goal{OfRatio, true, v} }

// RatioAtMost is an upper bound on value / floor.
func RatioAtMost(v float64) Goal { return Goal{OfRatio, false, v} }

func (g Goal) met(r Row) bool {
	v := r.Value
	if g.Of == OfRatio {
		v = r.Ratio
	}
	if g.Least {
		return v >= g.Bound
	}
	return v <= g.Bound
}

// String is the goal in a few characters.
func (g Goal) String() string {
	sign, unit := "≤", ""
	if g.Least {
		sign = "≥"
	}
	if g.Of == OfRatio {
		unit = " × floor"
	}
	return sign + " " + number(g.Bound) + unit
}

// Of fills in what the rounds of r make of it.
func Of(r Row, rounds []Pair) Row {
	var values, floors, ratios []float64
	for _, p := range rounds {
		values = append(values, p.Value)
		if p.Floor > 0 {
			floors, ratios = append(floors, p.Floor), append(ratios, p.Value/p.Floor)
		}
	}
	r.Rounds = rounds
	r.Value, r.Floor, r.Ratio = Median(values), Median(floors), Median(ratios)
	if len(r.Goals) > 0 {
		met := !slices.ContainsFunc(r.Goals, func(g Goal) bool { return !g.met(r) })
		r.Met = &met
	}
	return r
}

// Alternate takes value and floor in turn, so often, after a first round that
// does not count. Each round begins with the one that the round before ended
// with, so that what grows in the course of it favours neither.
func Alternate(ctx context.Context, rounds int, value, floor func(context.Context) (float64, error)) ([]Pair, error) {
	var out []Pair
	for n := range rounds + 1 {
		var p Pair
		take := []func() error{
			func() (err error) { p.Value, err = value(ctx); return err },
			func() (err error) { p.Floor, err = floor(ctx); return err },
		}
		if n%2 == 1 {
			slices.Reverse(take)
		}
		for _, f := range take {
			err := ctx.Err()
			if err == nil {
				err = f()
			}
			if err != nil {
				return nil, fmt.Errorf("round %d: %w", n, err)
			}
		}
		out = append(out, p)
	}
	return out[1:], nil
}

// Median is the middle of values, 0 of none.
func Median(values []float64) float64 { return Percentile(values, 50) }

// Percentile is the smallest of values that p percent of them do not pass, 0
// of none. The median of an even number is between the two in the middle.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if p == 50 && len(s)%2 == 0 {
		return (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	i := int(float64(len(s)) * p / 100)
	return s[min(i, len(s)-1)]
}
