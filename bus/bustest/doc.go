// Package bustest is the conformance suite for backends: [All] holds a bus.Device to every
// rule in package bus's documentation. A backend's test looks like this:
//
//	func TestConformance(t *testing.T) {
//		bustest.All(t, func(t *testing.T) bustest.Subject {
//			return bustest.Edu(t, openEdu(t))
//		})
//	}
//
// What the rules say of any device is checked on whatever open returns. What needs the
// device's help (a register that keeps what is written, an interrupt, DMA, a link that
// dies) is checked where the [Subject] offers it, and skipped with the reason where it
// does not. [Edu] offers all but the last for QEMU's educational device, on any backend
// that can carry one, [Testdev] one register of its test device; [Plain] is any device as it is. [TIS] and
// [CRB] do so for platform devices, which have no config space: that they have none is checked then.
//
// open is called once for each test, which may ruin the device; it releases what it
// took in t.Cleanup, and Close of the device comes before that. The suite fails
// where a test left descriptors or goroutines behind ([NoLeaks]).
//
// [Bind] and [Log] are what packages qemutest and simtest have in common.
package bustest
