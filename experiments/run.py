"""Run the experiments on the embedded base: python experiments/run.py [--list] [NAME ...]

Without names it runs all of them, which takes most of a day on two CPU cores. Started again after a kill, it continues:
it skips commands that are listed in runs/experiments_done.txt because they succeeded. Delete lines there to run them
again. Results go to runs/, reports to runs/evaluate/*/report; the folders beside this file hold the findings.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DONE = ROOT / "runs" / "experiments_done.txt"
_T = (
    "train.py experiment=flow_refiner scale.height=64 scale.width=64 scale.batch_size=16 ckpt_path=auto "
    "trainer.val_check_interval=400"
)
_LORA = (
    "train.py experiment=motion_lora scale.height=64 scale.width=64 trainer.max_steps=800 model.decay_steps=400 "
    "trainer.val_check_interval=400 ckpt_path=auto"
)
_ALONE = (
    "train.py experiment=motion_lora scale.height=64 scale.width=64 trainer.max_steps=3000 model.decay_steps=1500 "
    "trainer.val_check_interval=3000 model.drop_flow=1 model.drop_strength=1 run=alone16 ckpt_path=auto"
)
_DEMO = (  # as make demo, on the shipped base
    "train.py experiment=motion_lora scale.height=64 scale.width=64 trainer.max_steps=150 "
    "trainer.val_check_interval=150 ckpt_path=auto"
)
_PANNING, _LONGER = "runs/panning_base/base/pipeline", "runs/panning_base/longer/pipeline"
_CAMERA = "experiments/motion_lora/camera.py"
_LONG = "evaluate.py -m benchmark=synthetic125 long_video=phased n=6 sampling.dtype=bfloat16"
COMMANDS = {
    "flow_refiner": [  # the first is the shipped T: copied to motionanim/assets/flow-refiner
        f"{_T} trainer.max_steps=2800 run=t",
        f"{_T} trainer.max_steps=2800 run=blind model.refiner.sees_image=false",
        "experiments/flow_refiner/compare.py T=runs/flow_refiner/t/flow_refiner.safetensors "
        "'T, no image=runs/flow_refiner/blind/flow_refiner.safetensors'",
    ],
    "table1": [
        "evaluate.py -m sweep=table1",
        "evaluate.py -m name=table1 mask=false method=warp conditioning=full,no_refiner "
        "'method.label=\"warp, ${hydra:runtime.choices.conditioning}\"'",
        "evaluate.py name=table1 method=warp 'method.label=\"warp, mask given\"'",
    ],
    "table2": ["evaluate.py -m sweep=table2 n=12"],
    "gamma": [
        "evaluate.py -m sweep=gamma n=12 long_video.gamma=0,0.6,0.8,1",
        "evaluate.py -m sweep=gamma n=12 sampling.rho=1 name=gamma_uniform long_video.gamma=0,0.6,0.8,1",
    ],
    "noise_reschedule": [
        "evaluate.py -m sweep=omega sampling.dtype=bfloat16 n=6 long_video.omega=0,0.2,0.8",
        f"{_LONG} name=omega long_video.shuffle=global,none 'method.label=\"phased, shuffle ${{long_video.shuffle}}\"'",
        f"{_LONG} name=omega long_video.renormalize=false 'method.label=\"phased, Eq. 11 as printed\"'",
        f"{_LONG} name=omega long_video.shared_noise=image 'method.label=\"phased, n(t) of the image\"'",
        "evaluate.py -m sweep=omega sampling.dtype=bfloat16 n=6 name=omega_early long_video.gamma=0.4 "
        "long_video.omega=0,0.8",
        f"{_LONG} name=omega_early long_video.gamma=0.4 long_video.renormalize=false long_video.omega=0.8 "
        "'method.label=\"phased, Eq. 11 as printed, omega 0.8\"'",
    ],
    "strength": ["evaluate.py -m sweep=strength n=24"],
    "control": ["benchmarks/control.py --report benchmarks/control.md"],
    "motion_lora": [
        "train.py experiment=panning_base run=base ckpt_path=auto",
        *(f"{_LORA} scale.base={_PANNING} model.rank={rank} run=panning{rank}" for rank in (16, 4, 64)),
        f"{_CAMERA} weights --base {_PANNING} 'rank 16=runs/motion_lora/panning16/lora.safetensors' "
        "--weights 0.25 0.5 0.75 1",
        f"{_CAMERA} ranks --base {_PANNING} 'rank 4=runs/motion_lora/panning4/lora.safetensors' "
        "'rank 64=runs/motion_lora/panning64/lora.safetensors'",
        "train.py experiment=panning_base run=longer trainer.max_steps=1400 model.decay_steps=600 ckpt_path=auto",
        f"{_LORA} scale.base={_LONGER} run=longer16",
        f"{_CAMERA} longer --base {_LONGER} 'rank 16=runs/motion_lora/longer16/lora.safetensors'",
        f"{_ALONE} scale.base={_LONGER}",
        f"{_CAMERA} alone --seed 2 --base {_LONGER} '800 steps=runs/motion_lora/longer16/lora.safetensors' "
        "'3 000 steps, left alone=runs/motion_lora/alone16/lora.safetensors'",
        *(f"{_DEMO} model.rank={rank} run=shipped{rank}" for rank in (16, 4, 64)),
    ],
    "hints": [
        "evaluate.py -m sweep=hints n=64",
        "evaluate.py method=warp n=64 name=hints_cut controls.edge=cut",
    ],
    "guidance": [
        f"{_LONG} sampling.max_guidance=3 name=guide_later long_video.guide_later=true,false "
        "'method.label=\"phased, guide_later ${long_video.guide_later}\"'"
    ],
    "embedded_base": ["experiments/embedded_base/make.py --out runs/embedded_base/tiny-svd"],  # beside the shipped one
    "conditioning": ["experiments/embedded_base/conditioning.py"],  # after embedded_base
    "warp_control": ["experiments/warp_control/levels.py", "experiments/warp_control/measure.py"],
    "pictures": ["experiments/embedded_base/pictures.py", "experiments/animate/pictures.py"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    unknown = sorted({*args.names} - {*COMMANDS})
    if unknown:
        parser.error(f"no experiment {unknown[0]}: choose of {', '.join(COMMANDS)}")
    done = DONE.read_text().splitlines() if DONE.exists() else []
    for name in args.names or COMMANDS:
        for command in COMMANDS[name]:
            print(f"$ python {command}", flush=True)
            if not args.list and command not in done:
                path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
                status = subprocess.run(
                    [sys.executable, *shlex.split(command)], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
                ).returncode
                if status:
                    sys.exit(status)
                DONE.parent.mkdir(exist_ok=True)
                with DONE.open("a") as file:
                    file.write(command + "\n")


if __name__ == "__main__":
    main()
