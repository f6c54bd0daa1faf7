// Package guest has the tests that run in a VM, under the kernel's VFIO and UIO and a virtual
// IOMMU. They have the build tag vm; package vm tells how they are run.
package guest
