"""Mutations of the monitors of systems that build with ninja."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M, T = "pytest_jitguard/monitors", "tests/monitors"
BUILDS = f"{M}/_builds.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "ninja with nothing to do is taken for a build",
        BUILDS,
        "        if after == before:\n            told.kind",
        "        if after is None:\n            told.kind",
        f"{T}/test_cpp_extension.py::test_what_another_process_built_is_loaded",
    ),
    Mutation(
        "a build that was not foreseen stays a load",
        BUILDS,
        '            told.kind = "compile"\n            told.reason = told.reason or _rebuilt(artifact)\n',
        "            told.reason = told.reason or _rebuilt(artifact)\n",
        f"{T}/test_cpp_extension.py::test_what_ninja_built_again_for_its_own_reasons_is_put_right_at_the_end",
    ),
    Mutation(
        "what a process has built is not known to it",
        BUILDS,
        "        self.known[after] = name\n        told.artifact_hash",
        "        told.artifact_hash",
        f"{T}/test_flashinfer.py::test_ninja_with_nothing_to_do_is_a_load_in_a_fresh_process_and_nothing_in_the_same",
    ),
    Mutation(
        "a source that is newer is not looked for",
        BUILDS,
        "        if found is not None and found.modified > artifact.modified:\n",
        "        if found is not None and found.modified > artifact.modified + 10**18:\n",
        f"{T}/test_cpp_extension.py::test_a_source_that_is_newer_than_the_library_is_named",
    ),
    Mutation(
        "what a prebuild builds again is not due",
        f"{M}/flashinfer.py",
        "if why or before[library] is None}",
        "if before[library] is None}",
        f"{T}/test_flashinfer.py::test_a_prebuild_tells_what_it_builds_again",
    ),
    Mutation(
        "what a prebuild builds unforeseen is forgotten",
        f"{M}/flashinfer.py",
        "                if library not in due:\n",
        "                if False:\n",
        f"{T}/test_flashinfer.py::test_a_prebuild_tells_what_it_builds_again",
    ),
    Mutation(
        "words at the end of a module's name are dropped",
        BUILDS,
        "    if found and words:\n",
        "    if False:\n",
        f"{T}/test_builds.py",
    ),
    Mutation(
        "a lock that is held is not noticed",
        BUILDS,
        "    except BlockingIOError:\n        return True\n",
        "    except BlockingIOError:\n        return False\n",
        f"{T}/test_flashinfer.py::test_a_wait_for_another_process_is_seen_while_it_lasts",
    ),
    Mutation(
        "a library that could not be loaded is taken for loaded",
        BUILDS,
        "        except BaseException:\n            self.known.pop(found, None)\n            raise\n",
        "        except BaseException:\n            raise\n",
        f"{T}/test_sglang_jit.py::test_a_library_that_cannot_be_loaded_is_a_failed_load_and_no_hit_afterwards",
    ),
    Mutation(
        "FlashInfer: mapped modules are not looked at",
        f"{M}/flashinfer.py",
        "            if file not in announced:\n",
        "            if not file:\n",
        f"{T}/test_flashinfer.py::test_a_module_that_was_mapped_before_the_guard_is_no_blindness",
    ),
    Mutation(
        "FlashInfer: what was mapped before the guard makes it blind",
        f"{M}/flashinfer.py",
        "        self._mapped_before = set(mapped_under(self._folder()))\n",
        "        self._mapped_before = set()\n",
        f"{T}/test_flashinfer.py::test_a_module_that_was_mapped_before_the_guard_is_no_blindness",
    ),
    Mutation(
        "FlashInfer: a download that gave up counts as one",
        f"{M}/flashinfer.py",
        "                if fetched is False:\n",
        "                if fetched is None:\n",
        f"{T}/test_flashinfer.py::test_a_cubin_that_is_not_there_is_a_download",
    ),
    Mutation(
        "FlashInfer: the load of a CuTe kernel just built is an event",
        f"{M}/flashinfer.py",
        "                self.known[after] = spec.name\n",
        "                pass\n",
        f"{T}/test_flashinfer.py::test_cute_kernels_are_told_as_compiles_and_loads",
    ),
    Mutation(
        "a library's own switch stays on",
        BUILDS,
        "        elif self._before is None:\n            os.environ.pop(self._variable, None)\n",
        "        elif self._before is None:\n            pass\n",
        f"{T}/test_flashinfer.py::test_its_own_switch_refuses_and_is_put_back",
    ),
    Mutation(
        "a library's own switch is taken for ours",
        BUILDS,
        "{asked if self._is_ours else f'{self._variable}, which is set'}",
        "{asked}",
        f"{T}/test_flashinfer.py::test_the_switch_that_a_user_had_set_stays",
    ),
    Mutation(
        "what SGLang refuses is not told",
        f"{M}/sglang_jit.py",
        "            if _DENY in str(error):\n",
        "            if False:\n",
        f"{T}/test_sglang_jit.py::test_its_own_switch_refuses_compiles_and_lets_loads_pass",
    ),
    Mutation(
        "AITER: fetching a third party's sources is a build",
        f"{M}/aiter.py",
        ' or Path(path).name.startswith("lock_3rdparty")',
        "",
        f"{T}/test_aiter.py::test_a_module_is_built_once_and_loaded_in_a_fresh_process",
    ),
    Mutation(
        "AITER: its second file baton is not watched",
        f"{M}/aiter.py",
        "        self.hook_later(_BATON, self._hook_baton)\n",
        "",
        f"{T}/test_aiter.py::test_templates_are_told_like_modules",
    ),
    Mutation(
        "AITER: a copied library counts as compiled",
        f"{M}/aiter.py",
        "            if inner and before is not None and identity(inner) == before:\n",
        "            if inner and before is None and identity(inner) == before:\n",
        f"{T}/test_aiter.py::test_a_build_in_which_ninja_had_nothing_to_do_is_no_compile",
    ),
    Mutation(
        "tvm-ffi: sources are not compared with the library",
        f"{M}/tvm_ffi.py",
        '[*plan.sources, folder / "build.ninja"]',
        "[]",
        f"{T}/test_tvm_ffi.py::test_a_source_that_changed_is_built_again_in_the_same_process_and_in_another",
    ),
    Mutation(
        "tvm-ffi: the lock is not watched",
        f"{M}/tvm_ffi.py",
        '        self.wrap(module, "FileLock", self._lock)\n',
        "",
        f"{T}/test_tvm_ffi.py::test_a_wait_for_another_process_is_seen_while_it_lasts",
    ),
    Mutation(
        "SGLang: a library that is renamed after its load is loaded anew",
        f"{M}/sglang_jit.py",
        "                self.known[built] = name\n",
        "                pass\n",
        f"{T}/test_sglang_jit.py::test_a_build_is_one_compile_and_a_load_in_a_fresh_process",
    ),
    Mutation(
        "cpp_extension: a changed version of an extension is not told from a first build",
        f"{M}/cpp_extension.py",
        "self._versions(base) == int(number)",
        "self._versions(base) == -int(number)",
        f"{T}/test_cpp_extension.py::test_a_changed_source_is_a_version_of_its_own_and_says_so",
    ),
    Mutation(
        "cpp_extension: waits for its lock are not seen",
        f"{M}/cpp_extension.py",
        '        self.wrap(module, "FileBaton.wait", self._wait)\n',
        "",
        f"{T}/test_cpp_extension.py::test_a_lock_that_a_dead_process_left_is_a_wait_that_is_seen_while_it_lasts",
    ),
)
