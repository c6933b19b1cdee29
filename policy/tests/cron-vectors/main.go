// Prints what the standard parser of github.com/robfig/cron/v3 answers, as the tests of jackline-policy read it:
//
//	go run . > vectors.json
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"time"
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
)

type vector struct {
	Spec string   `json:"spec"`
	Ok   bool     `json:"ok"`
	From string   `json:"from,omitempty"`
	Next []string `json:"next,omitempty"`
}

// parse turns the parser's panics into errors, as Velero does.
func parse(spec string) (schedule cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return cron.ParseStandard(spec)
}

func main() {
	time.Local = time.UTC
	random := rand.New(rand.NewSource(1))
	var vectors []vector

	add := func(spec string, from time.Time, runs int) {
		schedule, err := parse(spec)
		if err != nil {
			vectors = append(vectors, vector{Spec: spec})
			return
		}
		v := vector{Spec: spec, Ok: true, From: from.UTC().Format(time.RFC3339Nano)}
		at := from
		for i := 0; i < runs; i++ {
			at = schedule.Next(at)
			if at.IsZero() {
				v.Next = append(v.Next, "")
				break
			}
			v.Next = append(v.Next, at.UTC().Format(time.RFC3339))
		}
		vectors = append(vectors, v)
	}

	base := time.Date(2026, 11, 23, 2, 17, 41, 123456789, time.UTC)
	for _, spec := range []string{
		"", " ", "*", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 0 *", "* * * 13 *",
		"* * * * 7", "-1 * * * *", "5-1 * * * *", "*/0 * * * *", "1-2-3 * * * *", "1/2/3 * * * *", "a * * * *", "* * * foo *",
		"*/ * * * *", "/5 * * * *", "1- * * * *", "+5 * * * *", "1_0 * * * *", "*-5 * * * *", "?-x * * * *", ", * * * *", "1,,2 * * * *",
		"@every", "@every 5", "@every x", "@every -1h", "@every 0s", "@every 1ms", "@every 1500ms", "@every 1h30m", "@every 1.5h",
		"@every 90s", "@every +5s", "@every  5s", "@daily ", " @daily", "@Daily", "@reboot", "@yearly", "@annually", "@monthly",
		"@weekly", "@daily", "@midnight", "@hourly", "TZ=UTC", "TZ= * * * * *", "TZ=UTC @daily", "CRON_TZ=Europe/Berlin @daily",
		"CRON_TZ=Europe/Berlin   0 2 * * *", "TZ=Mars/Olympus * * * * *", "TZ=europe/berlin 0 2 * * *", "TZ=../UTC * * * * *", "TZ=Local 0 2 * * *",
		"CRON_TZ=Asia/Tokyo @every 1m", "  0   2 * *\t* ", "? ? ? ? ?", "0 0 ? * MON", "0 0 1 * MON", "0 0 1 * *", "0 0 */1 * MON",
		"0 0 */2 * MON", "0 0 1-31 * MON", "0 0 * JAN-mar Sun", "0 0 * * SUN-SAT", "0 0 * * fri-mon", "30/10 * * * *", "5/60 * * * *",
		"0-59/15 9-17 * * 1-5", "*/7 */5 */3 */2 */4", "0 0 29 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "59 23 31 12 *", "0 0 29 2 1",
		"* * * * *", "1,2,3,5-10/2,50/3 * * * *", "0 0 13 * 5", "0 0 1,15 * 3", "00 02 * * *", "0 2 * * *", "0 0 31 * *",
	} {
		add(spec, base, 6)
	}

	// Clock changes that editions of the time zone database agree on: by an hour, by half an hour, at midnight, far north and south. (Pacific/Apia, which left out a whole day, would
	// keep the Go module searching for ever.)
	changes := map[string][]string{
		"Europe/Berlin":       {"2026-03-29", "2026-10-25"},
		"America/New_York":    {"2026-03-08", "2026-11-01"},
		"Australia/Lord_Howe": {"2026-04-05", "2026-10-04"},
		"America/Sao_Paulo":   {"2018-11-04", "2018-02-18"},
		"Asia/Beirut":         {"2026-03-29", "2026-10-25"},
		"Africa/Cairo":        {"2026-04-24", "2026-10-30"},
		"Africa/Casablanca":   {"2026-02-15", "2026-03-22"},
		"America/Asuncion":    {"2023-10-01", "2023-03-26"},
		"Asia/Kathmandu":      {"2026-01-01"},
		"Antarctica/Troll":    {"2026-03-29", "2026-10-25"},
	}
	zones := []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Beirut",
		"Africa/Cairo", "Africa/Casablanca", "America/Asuncion", "Asia/Kathmandu", "Antarctica/Troll"}
	specs := []string{"* * * * *", "*/30 * * * *", "0 * * * *", "0 0 * * *", "30 0 * * *", "0 1 * * *", "30 1 * * *", "0 2 * * *", "30 2 * * *",
		"0 3 * * *", "0 0 1 * *", "0 0 * * 0", "15 23 * * *", "0 0-3 * * *", "0 2 * * 0", "0 0 30 * *", "@daily", "@hourly", "@monthly"}
	for _, zone := range zones {
		for _, day := range changes[zone] {
			location, err := time.LoadLocation(zone)
			if err != nil {
				panic(err)
			}
			at, err := time.ParseInLocation("2006-01-02", day, location)
			if err != nil {
				panic(err)
			}
			for _, spec := range specs {
				for _, before := range []time.Duration{30 * time.Hour, 90 * time.Minute, 10 * time.Minute, -45 * time.Minute, -100 * time.Minute} {
					add("CRON_TZ="+zone+" "+spec, at.Add(-before), 4)
				}
			}
		}
	}

	// Anything that the grammar allows, and a little that it does not.
	number := func(min, max int) string { return fmt.Sprint(min + random.Intn(max-min+1)) }
	field := func(min, max int) string {
		var parts []string
		for i := 0; i <= random.Intn(3); i++ {
			part := "*"
			switch random.Intn(5) {
			case 0, 1:
				part = number(min, max)
			case 2:
				part = number(min, max) + "-" + number(min, max)
			}
			if random.Intn(4) == 0 {
				part += "/" + number(0, max)
			}
			parts = append(parts, part)
		}
		return strings.Join(parts, ",")
	}
	anywhere := []string{"", ""}
	for _, zone := range zones {
		// Its clock changes of coming years differ between versions of the time zone database.
		if zone != "Africa/Casablanca" {
			anywhere = append(anywhere, zone)
		}
	}
	for i := 0; i < 1500; i++ {
		spec := strings.Join([]string{field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6)}, " ")
		if zone := anywhere[random.Intn(len(anywhere))]; zone != "" {
			spec = "TZ=" + zone + " " + spec
		}
		add(spec, time.Unix(1262304000+random.Int63n(30*365*86400), random.Int63n(1e9)), 4)
	}

	out := json.NewEncoder(os.Stdout)
	fmt.Print("[\n")
	for i, v := range vectors {
		if i > 0 {
			fmt.Print(",")
		}
		if err := out.Encode(v); err != nil {
			panic(err)
		}
	}
	fmt.Print("]\n")
}
